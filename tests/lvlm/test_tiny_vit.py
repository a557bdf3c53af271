"""TinyViT beside the tower: strides, the neck, and the names of LiteMedSAM's checkpoints."""

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed: pip install popen-seg[clip]")

from popen.lvlm.tiny_vit import TinyVitBackbone, TinyVitConfig, from_lite_medsam, window_offsets


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return TinyVitBackbone(TinyVitConfig(out_stages=[0, 1, 2, 3])).eval()


def test_strides_and_widths(encoder):
    """Strides 1, 2, 4, 4 of 48 pixels; 24 and 12 are no multiples of the windows of 7 and 14, which are padded."""
    with torch.no_grad():
        maps = encoder(torch.rand(2, 3, 48, 48)).feature_maps
    assert [tuple(m.shape) for m in maps] == [(2, 64, 48, 48), (2, 128, 24, 24), (2, 160, 12, 12), (2, 256, 12, 12)]
    assert encoder.channels == [64, 128, 160, 256]


def test_offsets_of_a_window(encoder):
    """By hand for 2 × 3 pixels, and those that timm numbers in the order in which it meets them."""
    by_hand = [
        [0, 1, 2, 3, 4, 5], [1, 0, 1, 4, 3, 4], [2, 1, 0, 5, 4, 3],
        [3, 4, 5, 0, 1, 2], [4, 3, 4, 1, 0, 1], [5, 4, 3, 2, 1, 0],
    ]  # fmt: skip
    assert window_offsets((2, 3)).tolist() == by_hand
    windows = [module for module in encoder.modules() if hasattr(module, "attention_bias_idxs")]
    assert {module.resolution for module in windows} == {(7, 7), (14, 14)}
    assert all(torch.equal(window_offsets(own.resolution), own.attention_bias_idxs) for own in windows)


def test_the_neck_normalises_channels(encoder):
    """Its last layer leaves mean 0 and variance 1 over channels wherever the map is not flat."""
    with torch.no_grad():
        neck = encoder(torch.rand(1, 3, 32, 32)).feature_maps[3]
    torch.testing.assert_close(neck.mean(1), torch.zeros(1, 8, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(neck.var(1, correction=0), torch.ones(1, 8, 8), atol=1e-3, rtol=0)


def test_training_keeps_the_batch_statistics(encoder):
    """A forward pass in training gives what evaluation gives, and leaves the running means alone."""
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    pictures = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = encoder.eval()(pictures).feature_maps
        found = encoder.train()(pictures).feature_maps
    encoder.eval()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_names_of_a_checkpoint(encoder):
    """A merge belongs to the stage before it there; `.c.` is a convolution; decoder weights are left out."""
    published = {
        "image_encoder.patch_embed.seq.0.c.weight": "stem.conv1.conv.weight",
        "image_encoder.patch_embed.seq.2.bn.running_mean": "stem.conv2.bn.running_mean",
        "image_encoder.layers.0.blocks.1.conv2.c.weight": "stages.0.blocks.1.conv2.conv.weight",
        "image_encoder.layers.0.downsample.conv1.c.weight": "stages.1.downsample.conv1.conv.weight",
        "image_encoder.layers.2.downsample.conv3.bn.bias": "stages.3.downsample.conv3.bn.bias",
        "image_encoder.layers.3.blocks.0.attn.attention_biases": "stages.3.blocks.0.attn.attention_biases",
        "image_encoder.layers.3.blocks.0.local_conv.c.weight": "stages.3.blocks.0.local_conv.conv.weight",
        "image_encoder.neck.3.bias": "neck.3.bias",
    }
    state = encoder.state_dict()
    weights = {name: state[own] for name, own in published.items()} | {"mask_decoder.iou_token.weight": torch.ones(1)}
    found = from_lite_medsam(weights)
    assert set(found) == set(published.values()) and found.keys() <= state.keys()
    assert all(torch.equal(found[own], state[own]) for own in found)


def test_the_configuration_knows_its_stages():
    assert TinyVitConfig().out_stages == [1, 3]
    assert TinyVitBackbone(TinyVitConfig()).channels == [128, 256]
