"""Damaged masks: the wanted area and Dice to the pixel, mirror images, and area that says nothing about Dice."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.medical.boundary import signed_distance
from popen.medical.damaged_masks import (
    MOST_GROWTH,
    best_dice,
    damage_order,
    damaged,
    drawn_damage,
    mirrored,
    one_hot,
)

few = settings(max_examples=30, deadline=None, derandomize=True)
TRUTH = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]).bool().reshape(1, 12)
ORDER = torch.arange(12.0).flip(0).reshape(1, 12)  # the left is the readiest


def disc(side=32, radius=8.0, dims=2):
    axes = torch.meshgrid(*[torch.arange(float(side))] * dims, indexing="ij")
    return sum((axis - side / 2) ** 2 for axis in axes) < radius**2


def dice(mask, truth):
    return 2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())


def ordered(truth, seed=0):
    spacing = (1.0,) * truth.dim()
    depth = torch.from_numpy(signed_distance(truth.numpy(), spacing))
    return damage_order(depth, spacing, torch.Generator().manual_seed(seed))


def test_area_and_dice_by_hand():
    """|T| = 4: twice the area at Dice ½ are 8 pixels, ½ · 12 / 2 = 3 of them in T; half of it at ⅔ are 2 within."""
    grown = damaged(TRUTH, ORDER, math.log(2), 0.5)
    assert grown.flatten().tolist() == [True] * 3 + [False] + [True] * 5 + [False] * 3
    assert damaged(TRUTH, ORDER, -math.log(2), 2 / 3).flatten().tolist() == [True] * 2 + [False] * 10
    assert torch.equal(damaged(TRUTH, ORDER, 0.0, 1.0), TRUTH)
    assert not (damaged(TRUTH, ORDER, 0.0, 0.0) & TRUTH).any()


def test_the_best_dice_is_the_same_for_too_large_and_too_small():
    """All 4 pixels of the truth in 8, or 2 of them alone: 2 · 4 / 12 = 2 · 2 / 6 = ⅔."""
    assert best_dice(math.log(2)) == best_dice(-math.log(2)) == pytest.approx(2 / 3)
    assert best_dice(0) == 1


def test_a_mirror_image_by_hand():
    """8 pixels with all 4 of T: Dice ⅔; its mirror image has 2 pixels and Dice ⅔, and that one's 8 again."""
    grown = damaged(TRUTH, ORDER, math.log(2), 2 / 3)
    shrunk = mirrored(grown, TRUTH, ORDER)
    assert shrunk.flatten().tolist() == [True] * 2 + [False] * 10
    assert torch.equal(mirrored(shrunk, TRUTH, ORDER), grown)


@few
@given(st.integers(0, 2**31), st.sampled_from([2, 3]))
def test_over_a_mask_and_its_mirror_area_says_nothing_about_dice(seed, dims):
    truth, generator = disc(24, 6.0, dims), torch.Generator().manual_seed(seed)
    growth, wanted = drawn_damage(generator)
    assert abs(growth) <= math.log(2) and 0.4 * best_dice(growth) <= wanted <= best_dice(growth)
    mask = damaged(truth, ordered(truth, seed), growth, wanted)
    assert dice(mask, truth) == pytest.approx(wanted, abs=0.02)
    other = mirrored(mask, truth, ordered(truth, seed + 1))
    assert dice(other, truth) == pytest.approx(dice(mask, truth), abs=0.02)
    grown = [math.log(float(own.sum() / truth.sum())) for own in (mask, other)]
    assert sum(grown) == pytest.approx(0, abs=0.02)


def test_shapes_look_like_masks_and_not_like_noise():
    """Most pixels of a damaged mask have all four neighbours on, as of a disc's; of pixels at random e^-4 would."""
    truth = disc(64, 16.0)
    mask = damaged(truth, ordered(truth), 0.3, 0.7)
    inner = mask[1:-1, 1:-1] & mask[2:, 1:-1] & mask[:-2, 1:-1] & mask[1:-1, 2:] & mask[1:-1, :-2]
    assert inner.sum() > 0.7 * mask.sum()
    assert not torch.equal(ordered(truth, 0), ordered(truth, 1)) and torch.equal(ordered(truth, 0), ordered(truth, 0))


def test_empty_full_and_cramped_truths():
    empty, full = torch.zeros(4, 4).bool(), torch.ones(4, 4).bool()
    assert not damaged(empty, ordered(empty), 0.3, 0.5).any()
    assert torch.equal(mirrored(full, empty, ordered(empty)), full)
    assert damaged(full, ordered(full), -math.log(2), 2 / 3).sum() == 8
    assert torch.equal(damaged(full, ordered(full), math.log(2), 0.1), full)  # there is no room to grow
    small = disc(8, 1.5)
    missed = mirrored(torch.zeros_like(small), small, ordered(small))  # nothing is four times too small at most
    assert missed.sum() == 4 * small.sum() and not (missed & small).any()


def test_classes_overlap_no_more():
    """Two classes claim the second pixel: the one that comes first keeps it; the last is the background's."""
    claims = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    assert one_hot(claims, [1, 2]).int().tolist() == [[0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]]
    assert one_hot(claims, [2, 1]).int().tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]]


ERRORS = {
    "growth 0.693, Dice 0.700: growth lies within ±1.386 and Dice in 0..0.667": lambda: damaged(
        TRUTH, ORDER, math.log(2), 0.7
    ),
    "growth 1.500, Dice 0.100: growth lies within ±1.386 and Dice in 0..0.365": lambda: damaged(
        TRUTH, ORDER, MOST_GROWTH + 0.1137056, 0.1
    ),
    "shapes differ: truth (1, 12), order (1, 11)": lambda: damaged(TRUTH, ORDER[:, 1:], 0.0, 1.0),
    "shapes differ: mask (1, 11), truth (1, 12)": lambda: mirrored(TRUTH[:, 1:], TRUTH, ORDER),
    "depth (1, 12), spacing (1.0,): give a number for each axis": lambda: damage_order(
        ORDER, (1.0,), torch.Generator()
    ),
    "truth must be bool, got torch.int64": lambda: damaged(TRUTH.long(), ORDER, 0.0, 1.0),
    "mask must be bool, got torch.int64": lambda: mirrored(TRUTH.long(), TRUTH, ORDER),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
