"""The attentions compute what they say, see everything from everywhere, and skips reach every decoder stage."""

import math

import pytest
import torch

from popen.medical.transattunet import (
    GlobalSpatialAttention,
    SelfAttention,
    SelfAwareAttention,
    TransAttUNet,
    positions,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_positions_by_hand():
    first, second = positions((2,), 5)
    assert first.tolist() == [0, 0, 1, 1, 0]
    assert second.tolist() == pytest.approx([math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01), 0])


@pytest.mark.parametrize("size", [(7, 5), (3, 4, 5)])
def test_every_voxel_has_a_position_of_its_own(size):
    found = positions(size, 24)
    assert found.shape == (math.prod(size), 24) and found.abs().max() <= 1
    assert len(found.unique(dim=0)) == math.prod(size)


def test_spatial_attention_is_a_softmax_of_likenesses():
    attention = GlobalSpatialAttention(2, 9).eval()
    features = torch.randn(1, 9, 3, 2)
    q, k, v = (part(features).flatten(2)[0] for part in (attention.query, attention.key, attention.value))
    expected = torch.stack([(q[:, i] @ k).softmax(0) @ v.T for i in range(6)], 1)
    torch.testing.assert_close(attention(features)[0].flatten(1), expected)


def test_self_attention_by_hand_with_one_head():
    attention = SelfAttention(8, heads=1, dropout=0.0)
    features = torch.randn(1, 8, 2, 2)
    tokens = attention.norm(features[0].flatten(1).T + positions((2, 2), 8))
    q, k, v = attention.qkv(tokens).chunk(3, dim=1)
    expected = attention.out((q @ k.T / 8**0.5).softmax(1) @ v)
    torch.testing.assert_close(attention(features)[0].flatten(1).T, expected)


def test_self_attention_knows_places_and_spatial_attention_does_not():
    alike = torch.ones(1, 8, 4, 4)
    assert SelfAttention(8, 2, 0.0)(alike).flatten(2).std(2).max() > 1e-3
    assert GlobalSpatialAttention(2, 8)(alike).flatten(2).std(2).max() < 1e-6


def test_the_bridge_without_weights_is_what_comes_in():
    bridge, features = SelfAwareAttention(3, 12, 2, 0.0), torch.randn(2, 12, 2, 3, 2)
    assert not torch.equal(bridge(features), features)
    bridge.weights.data.zero_()
    assert torch.equal(bridge(features), features)


def far_change(network: TransAttUNet) -> float:
    """How much a logit in one corner moves with a voxel in the other, beyond the reach of convolutions."""
    pictures = torch.randn(1, 1, 64, 64)
    other = pictures.clone()
    other[0, 0, 0, 0] += 10
    with torch.no_grad():
        return (network(other) - network(pictures))[0, 0, -4:, -4:].abs().max().item()


def test_only_the_bridge_carries_news_across_the_picture():
    network = TransAttUNet(2, 1, 1, (4, 8, 8), heads=2).eval()
    assert far_change(network) > 0
    network.bridge.weights.data.zero_()
    assert far_change(network) == 0


def test_every_decoder_stage_reads_all_coarser_ones():
    network = TransAttUNet(2, 1, 1, (4, 5, 6, 8), heads=2).eval()
    assert [len(read) for read in network.projections] == [1, 2, 3]
    assert [[p.in_channels for p in read] for read in network.projections] == [[8], [8, 6], [8, 6, 5]]
    assert [[p.out_channels for p in read] for read in network.projections] == [[6], [1, 5], [1, 1, 4]]
    network(torch.randn(1, 1, 16, 16)).sum().backward()
    assert all(p.weight.grad.any() for read in network.projections for p in read)


@pytest.mark.parametrize("dims, size", [(2, (21, 33)), (3, (9, 5, 7))])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_any_size_passes(dims, size, norm):
    logits = TransAttUNet(dims, 2, 3, (3, 5, 8), heads=2, norm=norm)(torch.randn(2, 2, *size))
    assert logits.shape == (2, 3, *size) and logits.isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": (8,)}, "two or more"),
        ({"channels": (4, 9)}, "divisible by 4 heads"),
        ({"channels": (4, 2), "heads": 1}, "at least 4"),
        ({"norm": "group"}, "batch or instance"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransAttUNet(2, 1, 1, **options)
