"""A popen model around a pretrained backbone: it goes on saying what it said, and its parts fit."""

import copy

import pytest
import torch
from PIL import Image
from transformers import SamImageProcessor, SamVisionConfig, SamVisionModel

from popen.data.safe_io import DataError
from popen.lvlm.composing import affine_between, compose
from popen.lvlm.pixel_backbones import trained_encoder
from tests.lvlm.families.tiny_backbones import tiny_backbone

SMALL = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "decoder_mlp_dim": 24}


@pytest.fixture(scope="module")
def llava(samples):
    return tiny_backbone("llava", [text for s in samples for q in s.questions for text in (q.question, q.answer)])


def test_words_are_the_backbones(llava):
    """Logits of the old vocabulary for a text without a picture; six new tokens."""
    side, backbone, processor = copy.deepcopy(llava)
    ids = torch.tensor([processor.tokenizer("Which cone is tall?")["input_ids"]])
    old = backbone.get_input_embeddings().num_embeddings
    with torch.no_grad():
        before = backbone(input_ids=ids).logits
        model, own = compose(backbone, processor, side, 300, **SMALL)
        after = model.backbone(input_ids=ids).logits
    assert len(own.tokenizer) == old + 6 == after.shape[-1]
    torch.testing.assert_close(after[..., :old], before)
    assert model.config.seg_token_ids == list(own.seg_token_ids) == list(range(old, old + 6))


def test_the_same_seed_gives_the_same_mask_parts(llava):
    models = [compose(*_of(copy.deepcopy(llava)), seed=seed, **SMALL)[0] for seed in (0, 0, 1)]
    first, same, other = (m.mask_decoder.state_dict() for m in models)
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def _of(made):
    side, backbone, processor = made
    return backbone, processor, side, 300


def test_a_side_that_does_not_fit(llava):
    _, backbone, processor = copy.deepcopy(llava)
    with pytest.raises(DataError, match="backbone 'llava': its vision tower takes 32 pixels, not 48; set image_size"):
        compose(backbone, processor, 48, 300)


def test_affine_between_two_normalisations():
    """A pixel of 0.5: (0.5 − 0.4) / 0.2 = 0.5 in the first, (0.5 − 0.1) / 0.4 = 1 in the second: 0.5 · 0.5 + 0.75."""

    class Normalised:
        def __init__(self, mean, std):
            self.image_mean, self.image_std = [mean] * 3, [std] * 3

    scale, shift = affine_between(Normalised(0.4, 0.2), Normalised(0.1, 0.4))
    assert scale == pytest.approx([0.5] * 3) and shift == pytest.approx([0.75] * 3)


def test_sam_beside_the_tower_sees_what_its_own_processor_makes(llava, tmp_path):
    """A trained SAM encoder from a folder: its features inside the model are its own of the same picture."""
    config = SamVisionConfig(
        hidden_size=24, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, mlp_dim=32,
        window_size=2, global_attn_indexes=[1], patch_size=8,
    )  # fmt: skip
    torch.manual_seed(3)
    sam = SamVisionModel(config).eval()
    sam.save_pretrained(tmp_path)
    own = SamImageProcessor(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
    own.save_pretrained(tmp_path)
    side, backbone, processor = copy.deepcopy(llava)
    model, processor = compose(backbone, processor, side, 300, pixel_encoder=trained_encoder(str(tmp_path)), **SMALL)
    picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 40).convert("RGB")
    seen = []
    model.pixel_encoder.backbone.sam.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
    with torch.no_grad():
        model.eval().encode_pictures(processor.pixel_values([picture]))
        expected = sam(own(picture, return_tensors="pt")["pixel_values"]).last_hidden_state
    torch.testing.assert_close(seen[0], expected, atol=1e-4, rtol=1e-3)


def test_open_clip_needs_safetensors(tmp_path):
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install popen-seg[clip]")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"no open_clip_model\.safetensors in it; popen reads safetensors only"):
        trained_encoder(str(tmp_path), architecture="ViT-B-16")
