"""Feature maps for the mask decoder, from a backbone of its own and from the vision tower's depths."""

import copy

import pytest
import torch
from transformers import SamVisionConfig

from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.packing import supervised_batch
from popen.lvlm.pixel_backbones import OpenClipVisionConfig
from popen.lvlm.pixel_encoder import PixelEncoder, PixelFusion
from popen.lvlm.tiny import tiny_config


@pytest.fixture
def config(tiny) -> PopenConfig:
    return tiny_config(tiny[1], width=48, layers=2)


def tower_config(config, layers):
    config = copy.deepcopy(config)
    config.pixel_config, config.pixel_layers = None, layers
    return config


def test_backbone_maps_are_coarse_first(config):
    """Strides 8 and 4 of a 96-pixel canvas: 12 and 24."""
    maps = PixelEncoder(config)(torch.randn(2, 3, 96, 96), ())
    assert [tuple(m.shape) for m in maps] == [(2, 16, 12, 12), (2, 16, 24, 24)]


def test_tower_maps_double(config):
    """8 × 8 patches at both depths; the second level is doubled by its neck."""
    encoder = PixelEncoder(tower_config(config, [-1, -2]))
    states = tuple(torch.randn(2, 40, 8, 8) for _ in range(2))
    maps = encoder(torch.zeros(2, 3, 96, 96), states)
    assert [tuple(m.shape) for m in maps] == [(2, 16, 8, 8), (2, 16, 16, 16)]
    assert encoder.backbone is None


def test_patches_stay_where_they_are(config):
    """Only patch (2, 5) differs: the 3 × 3 convolution carries it one step and no further."""
    encoder = PixelEncoder(tower_config(config, [-1, -2]))
    seen = torch.randn(1, 40, 8, 8)
    moved = seen.clone()
    moved[:, :, 2, 5] += torch.randn(40)
    before, after = (encoder(None, (m, m))[0][0] for m in (seen, moved))
    changed = (before != after).any(0).nonzero()
    assert changed.min(0).values.tolist() == [1, 4] and changed.max(0).values.tolist() == [3, 6]


def test_an_encoder_gets_its_own_size_and_normalisation(config):
    """x · scale + shift, then its own side; maps that do not double are stretched to the levels' sizes."""
    config.pixel_affine, config.pixel_size = [[2.0, 1.0, 1.0], [0.0, -1.0, 0.0]], 64
    encoder, seen = PixelEncoder(config), []
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pictures = torch.ones(1, 3, 96, 96)
    maps = encoder(pictures, ())
    assert seen[0].shape == (1, 3, 64, 64)
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), torch.tensor([2.0, 0.0, 1.0]))
    assert [m.shape[-1] for m in maps] == [8, 16]


def test_sam_gives_two_scales(config):
    """16-pixel patches of 64 pixels: 4 × 4 from SAM's neck, and half as deep, where popen's neck doubles them."""
    config.pixel_config = SamVisionConfig(
        hidden_size=24, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, mlp_dim=32,
        window_size=2, global_attn_indexes=[1],
    )  # fmt: skip
    config.pixel_size = 64
    encoder = PixelEncoder(config)
    assert [tuple(m.shape) for m in encoder(torch.randn(2, 3, 96, 96), ())] == [(2, 16, 4, 4), (2, 16, 8, 8)]
    assert [neck[0].in_channels for neck in encoder.necks] == [16, 24]


def test_open_clip_gives_two_scales(config):
    """16-pixel patches of 64 pixels, at the last block and the sixth before the end."""
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install popen-seg[clip]")
    config.pixel_config = OpenClipVisionConfig(architecture="ViT-B-16", image_size=64)
    config.pixel_size = 64
    encoder = PixelEncoder(config).eval()
    assert [tuple(m.shape) for m in encoder(torch.randn(1, 3, 96, 96), ())] == [(1, 16, 4, 4), (1, 16, 8, 8)]


def test_default_depths_of_the_tower(config):
    """The last but one state and the middle: -2 and -(1 + 2 // 2)."""
    made = PopenConfig(backbone_config=config.backbone_config, scales=2, image_size=96)
    assert made.pixel_config is None and made.pixel_layers == [-2, -2]


def test_a_model_without_a_pixel_backbone_trains(config, tiny, samples):
    model = PopenForReasoningSegmentation(tower_config(config, [-1, -2]))
    model.set_attn_implementation("eager")
    batch = supervised_batch(tiny[1], samples[:1])
    output = model(**{k: v for k, v in batch.items() if k not in ("token_sequence", "sequence_row")})
    output.loss.backward()
    assert output.mask_logits.shape[1:] == (32, 32)
    assert all(p.grad.abs().sum() > 0 for p in model.pixel_encoder.parameters())


@pytest.mark.parametrize("scales", [1, 3])
def test_wrong_number_of_scales_for_a_backbone(config, scales):
    config.scales = scales
    with pytest.raises(ValueError, match=rf"scales={scales} does not fit .* 2 feature maps"):
        PixelEncoder(config)


def test_the_tower_gives_at_most_two_scales(config):
    config = tower_config(config, [-1, -2, -3])
    config.scales = 3
    with pytest.raises(ValueError, match="scales=3 does not fit"):
        PixelEncoder(config)


def test_fewer_depths_than_scales(config):
    with pytest.raises(ValueError, match="scales=2 does not fit"):
        PixelEncoder(tower_config(config, [-1]))


def test_fusion_adds_the_mean_of_each_tokens_area():
    """Four tokens on maps of 2 × 2 and 4 × 4 with one channel each; the projection adds both to all hidden channels.

    The coarse map gives 1 2 3 4; the fine one holds 0 … 15, whose quarters have the means 2.5 4.5 10.5 12.5.
    """
    fusion = PixelFusion(dim=1, scales=2, hidden_size=3)
    torch.nn.init.ones_(fusion.project.weight)
    torch.nn.init.zeros_(fusion.project.bias)
    maps = torch.tensor([[[[1.0, 2], [3, 4]]]]), torch.arange(16.0).view(1, 1, 4, 4)
    (tokens,) = fusion([torch.full((4, 3), 100.0)], maps)
    assert tokens.tolist() == [[103.5] * 3, [106.5] * 3, [113.5] * 3, [116.5] * 3]


def test_fusion_keeps_pictures_apart():
    torch.manual_seed(0)
    fusion = PixelFusion(dim=4, scales=2, hidden_size=6)
    tokens, maps = [torch.randn(9, 6) for _ in range(2)], (torch.randn(2, 4, 6, 6), torch.randn(2, 4, 12, 12))
    together = fusion(tokens, maps)
    for i in range(2):
        torch.testing.assert_close(together[i], fusion(tokens[i : i + 1], tuple(m[i : i + 1] for m in maps))[0])
