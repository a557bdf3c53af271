"""Rows that are one path each are told to be causal, and give what their explicit mask gives."""

import pytest
import torch

from popen.lvlm.packing import question_branches, stack_rows
from popen.lvlm.row_attention import row_attention
from popen.lvlm.shared_prefix import Branch, pack_tree, stack_trees

CHAIN = pack_tree([Branch(-1, (1, 2)), Branch(0, (3,))])
FORK = pack_tree([Branch(-1, (1, 2)), Branch(0, (3,)), Branch(0, (4,))])


def told(implementation, trees, readable=None):
    stacked = stack_trees(trees, pad_id=0)
    mask = stacked["attention_mask"]
    return row_attention(implementation, mask, stacked["spans"], readable, torch.float32), mask


def test_chains_are_causal_and_forks_have_their_mask():
    found, mask = told("sdpa", [CHAIN, CHAIN])
    assert found.shape == (2, 3) and bool((found == 1).all())
    found, mask = told("sdpa", [CHAIN, FORK])
    assert found is mask


def test_hidden_columns_are_seen_by_themselves_alone():
    readable = torch.tensor([[True, False, True]])
    found, _ = told("sdpa", [CHAIN], readable)
    assert found[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def test_eager_attention_adds_its_mask():
    found, _ = told("eager", [CHAIN])
    lowest = torch.finfo(torch.float32).min
    assert found[0, 0].tolist() == [[0, lowest, lowest], [0, 0, lowest], [0, 0, 0]]


def test_flex_attention_needs_spans():
    with pytest.raises(ValueError, match="flex_attention reads the spans of packed rows"):
        row_attention("flex_attention", torch.ones(1, 1, 3, 3, dtype=torch.bool), None, None, torch.float32)


def test_rows_of_different_length_give_what_their_mask_gives(tiny, samples):
    model, processor = tiny
    squares = [processor.place(sample.image)[0] for sample in samples[:2]]
    asked = [(sample.questions[0].question, sample.questions[0].answer) for sample in samples[:2]]
    asked[1] = (asked[1][0] + " Tell me all you see of it.", asked[1][1])
    rows = [question_branches(processor, [pair], "x") for pair in asked]
    batch = stack_rows(rows, processor.tokenizer.pad_token_id)
    assert batch["attention_mask"].shape[-1] > len(rows[0].tree.input_ids)
    with torch.no_grad():
        pictures = model.encode_pictures(processor.pixel_values(squares))
        inputs = batch["input_ids"], batch["position_ids"], batch["attention_mask"], pictures
        causal, _ = model.read(*inputs, spans=batch["spans"])
        masked, _ = model.read(*inputs)
    for row, tree in enumerate(rows):
        size = len(tree.tree.input_ids)
        torch.testing.assert_close(causal[row, :size], masked[row, :size], atol=1e-5, rtol=1e-4)
