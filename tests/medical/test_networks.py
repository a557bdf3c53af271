"""Every network learns from pictures and volumes, takes its options, and says in one line what it cannot do."""

import sys

import pytest
import torch
from torch import nn

from popen.data.safe_io import DataError
from popen.medical.networks import NETWORKS, build_network

CASES = [(name, dims) for name in NETWORKS for dims in (2, 3) if (name, dims) != ("smp_unet", 3)]


@pytest.mark.parametrize("name, dims", CASES)
def test_every_trainable_weight_of_every_network_gets_a_gradient(name, dims, tiny_config):
    torch.manual_seed(0)
    config = tiny_config(name, dims)
    network = build_network(config)
    logits = network(torch.randn(2, 3, *config.patch_size))
    assert logits.shape == (2, 2, *config.patch_size)
    logits.square().mean().backward()
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert trained and not [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert any(p.grad.any() for p in trained.values())


@pytest.mark.parametrize("name, dims", [case for case in CASES if case[0] not in ("unetr", "swin_unetr")])
def test_other_sizes_than_the_patch_pass(name, dims, tiny_config):
    network = build_network(tiny_config(name, dims)).eval()
    size = [side + by for side, by in zip(tiny_config(name, dims).patch_size, network.size_divisor, strict=True)]
    with torch.no_grad():
        assert network(torch.randn(1, 3, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize(
    "name, divisor", [("unet", (4, 4)), ("segresnet", (4, 4)), ("unetr", (32, 32)), ("smp_unet", (1, 1))]
)
def test_networks_say_what_sides_they_take(name, divisor, tiny_config):
    assert build_network(tiny_config(name)).size_divisor == divisor


@pytest.mark.parametrize("name, dims", CASES)
def test_dropout_stands_at_the_rate_of_the_configuration(name, dims, tiny_config):
    def rates(dropout):
        network = build_network(tiny_config(name, dims, dropout=dropout))
        kinds = nn.Dropout | nn.Dropout2d | nn.Dropout3d
        return {m.p for m in network.modules() if isinstance(m, kinds)}

    assert 0.3 in rates(0.3) <= {0.3, 0.0}  # Swin UNETR keeps that of its attention weights at 0
    assert rates(0.0) <= {0.0}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["residual_encoder_unet", "plain_conv_unet"])
def test_deep_supervision_gives_every_decoder_stage_with_the_full_resolution_first(name, dims, tiny_config):
    config = tiny_config(name, dims, options={"deep_supervision": True})
    network = build_network(config)
    levels = network(torch.randn(2, 3, *config.patch_size))
    side = config.patch_size[0]
    assert [tuple(level.shape) for level in levels] == [(2, 2, *(side // by,) * dims) for by in (1, 2)]
    sum(level.mean() for level in levels).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_strides_may_differ_between_axes_as_in_plans_of_nnunet(tiny_config):
    plan = {
        "features_per_stage": [4, 8, 8],
        "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
        "kernel_sizes": [[3, 3, 1]] * 3,
    }
    plan |= {"n_blocks_per_stage": [1, 1, 2], "n_conv_per_stage_decoder": [1, 1]}
    network = build_network(tiny_config("residual_encoder_unet", 3, patch_size=(8, 16, 6), options=plan))
    assert network.size_divisor == (4, 4, 2)
    assert network(torch.randn(1, 3, 8, 16, 6)).shape == (1, 2, 8, 16, 6)
    network = build_network(tiny_config("unet", 3, patch_size=(8, 16, 6), options={"strides": ((2, 2, 1), 2)}))
    assert network.size_divisor == (4, 4, 2)
    assert network(torch.randn(1, 3, 8, 16, 6)).shape == (1, 2, 8, 16, 6)


def test_an_option_changes_the_network(tiny_config):
    options = {"channels": (4, 8), "num_res_units": 0, "norm": "batch"}
    network = build_network(tiny_config("unet", options=options))
    # 3×3 convolutions with bias: 3→4, 4→8, and the last one back from 4+8 to 2; norm and PReLU after the first two
    by_hand = (27 + 1) * 4 + 2 * 4 + 1 + (36 + 1) * 8 + 2 * 8 + 1 + 12 * 2 * 9 + 2
    assert sum(p.numel() for p in network.parameters()) == by_hand


def test_defaults_are_small_enough_for_a_cpu(tiny_config):
    sizes = {}
    for name in ("unet", "attention_unet", "segresnet", "residual_encoder_unet", "plain_conv_unet", "transattunet"):
        config = tiny_config(name, patch_size=(64, 64))
        config.options.clear()
        sizes[name] = sum(p.numel() for p in build_network(config).parameters())
    assert max(sizes.values()) < 4e6, sizes


@pytest.mark.parametrize(
    "name, dims, changes, message",
    [
        ("vnet", 2, {}, "network 'vnet' is unknown; there are unet, attention_unet, .*transattunet"),
        ("unet", 2, {"options": {"chanels": 3}}, "network unet has no option 'chanels'; it has channels, strides"),
        ("unet", 2, {"patch_size": (30, 32)}, r"unet: sides must be divisible by \(4, 4\); take \(32, 32\)"),
        ("unet", 3, {"patch_size": (4, 4, 4)}, r"one voxel is left at the deepest level.*take \(8, 8, 8\)"),
        ("unet", 2, {"options": {"channels": (8,)}}, r"channels \(8,\) must be two or more"),
        ("unet", 2, {"options": {"channels": (8, 0, 8)}}, "each at least 1"),
        ("unet", 2, {"options": {"strides": (2,)}}, r"strides \(2,\) for 3 levels; there must be 2"),
        ("unet", 2, {"options": {"strides": ((2, 2, 2), 2)}}, "one number or one per axis"),
        ("unet", 2, {"options": {"norm": "spectral"}}, "network unet refuses its options"),
        ("attention_unet", 2, {"options": {"channels": (1, 2)}}, "at least 2 each"),
        ("segresnet", 2, {"options": {"blocks_up": (1,)}}, "blocks_up .* one less than blocks_down"),
        ("unetr", 2, {"patch_size": (40, 32)}, r"unetr: sides must be divisible by \(16, 16\); take \(48, 32\)"),
        ("unetr", 2, {"options": {"num_heads": 5}}, "network unetr refuses its options .*divisible by num_heads"),
        ("swin_unetr", 2, {"patch_size": (48, 48)}, r"divisible by \(32, 32\); take \(64, 64\)"),
        ("swin_unetr", 2, {"patch_size": (32, 32)}, "one voxel is left"),
        ("swin_unetr", 2, {"options": {"feature_size": 13}}, "divisible by 12"),
        ("residual_encoder_unet", 2, {"options": {"strides": (2, 2, 2)}}, "must begin with 1"),
        ("smp_unet", 3, {}, "network smp_unet is 2-D only, spatial_dims is 3; take one of unet"),
        ("smp_unet", 2, {"options": {"encoder_name": "resnet7"}}, "network smp_unet refuses its options .*resnet7"),
        (
            "smp_unet",
            2,
            {"options": {"encoder_name": "tu-resnet18", "encoder_weights": "imagenet"}},
            "encoder_weights of tu-resnet18",
        ),
        ("transattunet", 2, {"patch_size": (3, 32)}, "3 levels need sides of 4 or more"),
        ("transattunet", 2, {"options": {"norm": "layer"}}, "norm 'layer': batch or instance"),
        ("transattunet", 2, {"options": {"heads": 5}}, "divisible by 5 heads"),
    ],
)
def test_what_a_network_cannot_do_is_one_line(name, dims, changes, message, tiny_config):
    config = tiny_config("unet" if name == "vnet" else name, dims, **changes)
    object.__setattr__(config, "network", name)
    with pytest.raises(DataError, match=message) as error:
        build_network(config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_missing_library_names_the_extra(tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(DataError, match=r"network unet: .*monai.*; install popen-seg\[medical\]"):
        build_network(tiny_config("unet"))
