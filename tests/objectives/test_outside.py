"""The anchor outside R: values by hand, nothing for entries of R, constants on all classes, 2-D as 3-D."""

import math

import pytest
import torch

from popen.objectives.outside import outside_loss
from popen.objectives.regions import independent_regions, one_hot_regions

MAKERS = {1: independent_regions, 2: one_hot_regions}


def pairs(entries, shape=(2, 3, 4, 5), seed=0):
    """Two pairs of masks that differ in about a third of their pixels, the second pair in one alone: padding."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
    first, other = (torch.randint(shape[1], (shape[0], *shape[2:]), generator=draw) for _ in range(2))
    mixed = torch.where(torch.rand(first.shape, generator=draw) < 0.5, other, first)
    mixed[1] = first[1]
    mixed[1].view(-1)[0] = (first[1].view(-1)[0] + 1) % shape[1]
    chosen, rejected = (torch.nn.functional.one_hot(own, shape[1]).movedim(-1, 1).bool() for own in (first, mixed))
    return logits, chosen, rejected, MAKERS[entries](chosen, rejected)


def test_one_mask_by_hand():
    """Pixels on, off, differing, on at z = 0, 0, 9, ln 3: (ln 2 + ln 2 + ln 4/3) / 3."""
    logits = torch.tensor([[[[0.0, 0.0, 9.0, math.log(3)]]]])
    chosen, rejected = torch.tensor([[[[1, 0, 1, 1]]]]).bool(), torch.tensor([[[[1, 0, 0, 1]]]]).bool()
    regions = independent_regions(chosen, rejected)
    found = outside_loss(logits, chosen, regions.index, regions.sign, 1)
    assert found.item() == pytest.approx((2 * math.log(2) + math.log(4 / 3)) / 3)


def test_classes_by_hand():
    """Three pixels of classes 0, 1, 2 with probabilities ½, ¼, ¼ each; the last one differs: (ln 2 + ln 4) / 2."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 3, 1, 1).expand(1, 3, 1, 3)
    chosen = torch.eye(3).bool()[None, :, None]
    rejected = chosen[..., [0, 1, 1]]
    regions = one_hot_regions(chosen, rejected)
    for shift in (0.0, 5.0):
        found = outside_loss(logits + shift, chosen, regions.index, regions.sign, 2)
        assert found.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


@pytest.mark.parametrize("entries", [1, 2])
def test_it_pulls_exactly_where_both_masks_agree(entries):
    logits, chosen, rejected, regions = pairs(entries)
    loss = outside_loss(logits, chosen, regions.index, regions.sign, entries)
    (slope,) = torch.autograd.grad(loss, logits)
    agreed = chosen == rejected
    if entries == 2:
        agreed = agreed.all(1, keepdim=True).expand_as(agreed)
        torch.testing.assert_close(slope.sum(1), torch.zeros_like(slope[:, 0]))
    assert torch.equal(slope != 0, agreed) and agreed.any() and not agreed.all()
    assert torch.equal(slope[agreed] < 0, chosen[agreed])


@pytest.mark.parametrize("entries", [1, 2])
def test_a_volume_is_as_its_slices_side_by_side(entries):
    flat, chosen, _, regions = pairs(entries, (2, 3, 4, 6))
    volume = (2, 3, 4, 2, 3)
    expected = outside_loss(flat, chosen, regions.index, regions.sign, entries)
    assert outside_loss(flat.view(volume), chosen.view(volume), regions.index, regions.sign, entries) == expected


def test_gradients_are_those_of_the_loss():
    for entries in (1, 2):
        logits, chosen, _, regions = pairs(entries, (2, 3, 2, 2))
        assert torch.autograd.gradcheck(
            lambda z, c=chosen, r=regions: outside_loss(z, c, r.index, r.sign, r.entries), logits
        )


@pytest.mark.parametrize("entries", [1, 2])
def test_where_nothing_lies_outside_it_costs_nothing(entries):
    chosen = torch.zeros(1, 2, 1, 2).bool()
    chosen[:, 0] = True
    regions = MAKERS[entries](chosen, ~chosen)
    assert outside_loss(torch.full((1, 2, 1, 2), 7.0), chosen, regions.index, regions.sign, entries) == 0


Z, M = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3).bool()
INDEX, SIGN = torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.int8)
WRONG = {
    "shapes differ: logits (1, 2, 1, 3), chosen (1, 1, 3)": lambda: outside_loss(Z, M[0, :1], INDEX, SIGN, 1),
    "shapes differ: index (1, 4), sign (1, 3)": lambda: outside_loss(Z, M, INDEX, SIGN[:, 1:], 1),
    "chosen must be bool, got torch.float32": lambda: outside_loss(Z, Z, INDEX, SIGN, 1),
    "entries must be 1, or 2 for one-hot masks, got 3": lambda: outside_loss(Z, M, INDEX, SIGN, 3),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_refused_is_said(message):
    with pytest.raises(ValueError) as error:
        WRONG[message]()
    assert str(error.value) == message
