"""The mask decoder: shapes, independence of targets, and that every part of it takes part."""

import pytest
import torch
from torch.nn import functional as F

from popen.lvlm.mask_decoder import MaskDecoder

DIM = 16


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return MaskDecoder(DIM, depth=2, heads=4, mlp_dim=32, scales=2)


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, DIM, side, side, generator=generator) for side in (4, 8))


def embeddings(count, seed=2):
    return torch.randn(count, 2, DIM, generator=torch.Generator().manual_seed(seed))


def test_shapes(decoder, maps):
    logits, quality = decoder(maps, torch.tensor([0, 1, 1]), embeddings(3))
    assert logits.shape == (3, 16, 16) and quality.shape == (3,)
    assert ((quality > 0) & (quality < 1)).all()


def test_oblong_maps(decoder):
    features = torch.randn(1, DIM, 4, 6), torch.randn(1, DIM, 8, 12)
    assert decoder(features, torch.tensor([0]), embeddings(1))[0].shape == (1, 16, 24)


def test_no_targets(decoder, maps):
    logits, quality = decoder(maps, torch.zeros(0, dtype=torch.long), embeddings(0))
    assert logits.shape == (0, 16, 16) and quality.shape == (0,)
    (logits.sum() + quality.sum()).backward()  # DDP: a batch without targets still has a backward


def test_a_target_depends_on_its_own_picture_and_embedding_only(decoder, maps):
    picture, embedded = torch.tensor([1, 0, 1]), embeddings(3)
    together = decoder(maps, picture, embedded)
    for t in range(3):
        alone = decoder(tuple(m[picture[t] : picture[t] + 1] for m in maps), torch.tensor([0]), embedded[t : t + 1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[t], b[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0][0], together[0][2], atol=1e-3)


def test_gradient_reaches_every_parameter_and_input(decoder, maps):
    maps = tuple(m.requires_grad_() for m in maps)
    embedded = embeddings(3).requires_grad_()
    logits, quality = decoder(maps, torch.tensor([0, 1, 1]), embedded)
    (logits.square().mean() + quality.square().mean()).backward()
    still = [name for name, p in decoder.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    # a bias added to every key moves all logits of a softmax alike, so its gradient is 0 up to rounding
    assert [name for name in still if not name.endswith(".k.bias")] == []
    assert all(x.grad.abs().sum() > 0 for x in (*maps, embedded))
    assert (embedded.grad.abs().sum(-1) > 0).all()


def test_levels_are_summed_with_their_weights(decoder, maps):
    """m = Σ w_l up(m_l) is linear in w: (0.5, 0.5) is the mean of (1, 0) and (0, 1)."""
    arguments = maps, torch.tensor([0, 1]), embeddings(2)
    single = []
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        decoder.scale_weights.data = torch.tensor(weights)
        single.append(decoder(*arguments)[0])
    torch.testing.assert_close(single[2], (single[0] + single[1]) / 2, atol=1e-5, rtol=1e-5)
    coarse, _ = decoder.levels[0](maps[0], arguments[2][:, 0])
    torch.testing.assert_close(single[0], F.interpolate(coarse[:, None], (16, 16), mode="bilinear")[:, 0])
    assert (single[0] - single[1]).abs().max() > 1e-3


def test_the_coarse_mask_steers_the_fine_level(decoder, maps):
    """With all weight on the fine level, the coarse embedding still matters, through f · (1 + σ(m))."""
    decoder.scale_weights.data = torch.tensor([0.0, 1.0])
    embedded, other = embeddings(1), embeddings(1)
    other[:, 0] += 1
    before, after = (decoder(maps, torch.tensor([0]), e)[0] for e in (embedded, other))
    assert (before - after).abs().max() > 1e-4


def test_the_decoder_knows_places(decoder):
    """On a constant picture only the position code can make pixels differ."""
    flat = torch.ones(1, DIM, 4, 4), torch.ones(1, DIM, 8, 8)
    logits, _ = decoder(flat, torch.tensor([0]), embeddings(1))
    assert logits.std() > 1e-3


@pytest.mark.parametrize(
    "shape, levels, named",
    [((3, 3, DIM), 2, r"embeddings \(3, 3, 16\) and 2 feature maps; the decoder has 2 levels"),
     ((3, 2, DIM), 1, r"embeddings \(3, 2, 16\) and 1 feature maps"),
     ((3, DIM), 2, r"embeddings \(3, 16\)")],
)  # fmt: skip
def test_wrong_levels(decoder, maps, shape, levels, named):
    with pytest.raises(ValueError, match=named):
        decoder(maps[:levels], torch.tensor([0, 0, 1]), torch.zeros(shape))
