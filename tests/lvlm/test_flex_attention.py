"""FlexAttention on packed rows: its mask entry by entry, its sums on a CPU, and who cannot have it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations import flex_attention as flex_integration

from popen.data.safe_io import DataError
from popen.lvlm.loading import load_model
from popen.lvlm.packing import supervised_batch
from popen.lvlm.row_attention import FLEX
from popen.lvlm.shared_prefix import Branch, branch_spans, pack_tree, stack_trees, tree_block_mask, tree_mask_mod


@st.composite
def batches(draw):
    """Rows of one to six branches of one to four tokens, of different lengths."""
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        parents = [draw(st.integers(-1, index - 1)) for index in range(draw(st.integers(1, 6)))]
        rows.append(pack_tree([Branch(parent, (7,) * draw(st.integers(1, 4))) for parent in parents]))
    return stack_trees(rows, pad_id=0)


def entries(batch, readable):
    """The mask of FlexAttention, written out (B, S, S)."""
    rows, width = readable.shape
    mask_mod = tree_mask_mod(batch["spans"], readable)
    b, q, k = torch.meshgrid(torch.arange(rows), torch.arange(width), torch.arange(width), indexing="ij")
    return mask_mod(b, torch.zeros_like(b), q, k)


def test_spans_by_hand():
    """Root 0 has children 1 and 2, and 3 is below 1, so that it comes before 2 in preorder; 4 is a root of its own."""
    assert branch_spans([-1, 0, 0, 1, -1]) == [(0, 4), (1, 3), (3, 4), (2, 3), (4, 5)]
    tree = pack_tree([Branch(-1, (10, 11)), Branch(0, (20,))])
    assert tree.spans.tolist() == [[0, 0, 1], [2, 2, 2]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batches(), st.randoms(use_true_random=False))
def test_every_entry_is_that_of_the_dense_mask(batch, random):
    """Also where some columns, as hidden picture tokens, are read by none but themselves; and in padding."""
    shape = batch["input_ids"].shape
    whole = torch.ones(shape, dtype=torch.bool)
    assert torch.equal(entries(batch, whole), batch["attention_mask"][:, 0])
    some = torch.tensor([[random.random() < 0.7 for _ in range(shape[1])] for _ in range(shape[0])])
    itself = torch.eye(shape[1], dtype=torch.bool)
    assert torch.equal(entries(batch, some), batch["attention_mask"][:, 0] & (some[:, None] | itself))


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention in plain operations, which a CPU has, too; and a way to ask for it as if CUDA were here."""
    monkeypatch.setattr(
        flex_integration, "compile_friendly_flex_attention",
        lambda query, key, value, training=False, **options: flex_attention(query, key, value, **options),
    )  # fmt: skip

    def on_cuda(call):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            return call()

    return on_cuda


PLAIN = pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")


@PLAIN
def test_attention_is_that_of_the_dense_mask():
    branches = [Branch(-1, (1,) * 90), Branch(0, (2,) * 70), Branch(0, (3,) * 60), Branch(1, (4,) * 50)]
    batch = stack_trees([pack_tree(branches), pack_tree(branches[:2])], pad_id=0)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 270, 16, generator=generator)
    readable = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    mask = tree_block_mask(batch["spans"], readable)
    assert mask.shape == (2, 1, 270, 270)
    found = flex_attention(query, key, value, block_mask=mask)
    dense = scaled_dot_product_attention(query, key, value, attn_mask=batch["attention_mask"])
    torch.testing.assert_close(found, dense, atol=1e-5, rtol=0)


@PLAIN
def test_a_model_answers_as_with_the_dense_mask(tiny, samples, uncompiled):
    model = copy.deepcopy(tiny[0])
    model.config.look_weight = 0.0  # needs the weights that eager attention alone gives away
    batch = supervised_batch(tiny[1], samples[:2])
    inputs = {name: value for name, value in batch.items() if name not in ("token_sequence", "sequence_row")}
    with torch.no_grad():
        dense = model(**inputs)
        uncompiled(lambda: model.set_attn_implementation(FLEX))
        assert model.config.get_text_config()._attn_implementation == FLEX
        flex = model(**inputs)
        with pytest.raises(ValueError, match="flex_attention reads the spans of packed rows"):
            model(**{name: value for name, value in inputs.items() if name != "spans"})
    for name in ("logps", "embeddings", "mask_logits", "loss"):
        torch.testing.assert_close(getattr(flex, name), getattr(dense, name), atol=1e-4, rtol=1e-4)


def test_only_the_language_model_is_changed(tiny, uncompiled):
    model = copy.deepcopy(tiny[0])
    vision = model.config.backbone_config.vision_config
    before = vision._attn_implementation
    uncompiled(lambda: model.set_attn_implementation(FLEX))
    assert vision._attn_implementation == before != FLEX
    model.set_attn_implementation("eager")
    assert model.config.get_text_config()._attn_implementation == "eager"


def test_it_is_never_chosen_without_being_asked_for(tiny, tmp_path, uncompiled):
    for part in tiny:
        part.save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].config.get_text_config()._attn_implementation != FLEX
    asked, _ = uncompiled(lambda: load_model(tmp_path, attn_implementation=FLEX))
    assert asked.config.get_text_config()._attn_implementation == FLEX


def test_without_cuda_it_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for part in tiny:
        part.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"^attn_implementation flex_attention: no CUDA device is here"):
        load_model(tmp_path, attn_implementation=FLEX)
