"""Distances to a mask's boundary against brute force, Euclid and paths by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.medical.boundary import (
    geodesic_distance,
    geodesic_membership,
    one_hot_geodesic_membership,
    signed_distance,
)

few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
spacings = st.lists(st.floats(0.3, 5), min_size=2, max_size=3)
SHAPES = {2: (6, 7), 3: (3, 5, 4)}


def close(actual, expected, **kwargs):
    np.testing.assert_allclose(actual, expected, **{"rtol": 1e-5, "atol": 1e-6, **kwargs})


def apart(shape, spacing):
    """Distance of every pixel's centre to every other's, (pixels, pixels)."""
    places = np.indices(shape).reshape(len(shape), -1).T * np.asarray(spacing)
    return np.linalg.norm(places[:, None] - places[None], axis=-1)


def walked(image, seeds, spacing, weight):
    """Geodesic distance by relaxing every edge until nothing changes."""
    steps = apart(seeds.shape, spacing)
    grid = np.indices(seeds.shape).reshape(seeds.ndim, -1).T
    neighbours = np.abs(grid[:, None] - grid[None]).max(-1) <= 1
    values = image.reshape(len(image), -1)
    change = ((values[:, :, None] - values[:, None]) ** 2).sum(0)
    cost = np.where(neighbours, np.sqrt((1 - weight) * steps**2 + weight * change), np.inf)
    distance = np.where(seeds.ravel(), 0, np.inf)
    for _ in range(seeds.size):
        distance = (distance[:, None] + cost).min(0)
    return distance.reshape(seeds.shape)


# signed distance


def test_signed_distance_by_hand():
    """A row of five, 2 mm apart, the middle three inside: −2, 2, 4, 2, −2 mm; rows are 3 mm apart and equal."""
    mask = np.tile([False, True, True, True, False], (2, 1))
    distance = signed_distance(mask, (3.0, 2.0))
    assert distance.dtype == np.float32
    close(distance, [[-2, 2, 4, 2, -2]] * 2)


@few
@given(seeds, spacings)
def test_signed_distance_is_the_nearest_pixel_of_the_other_side(seed, spacing):
    shape = SHAPES[len(spacing)]
    mask = np.random.default_rng(seed).random(shape) > 0.5
    mask.flat[0], mask.flat[1] = True, False
    inside = mask.ravel()
    other = np.where(inside[:, None] != inside[None], apart(shape, spacing), np.inf).min(1)
    close(signed_distance(mask, spacing).ravel(), np.where(inside, other, -other))


def test_each_mask_of_a_batch_is_its_own_and_a_complement_changes_the_sign():
    masks = np.random.default_rng(0).random((2, 3, 5, 6)) > 0.5
    masks[0, 0], masks[0, 1] = True, False
    distance = signed_distance(masks, (1.0, 0.5))
    assert distance.shape == masks.shape
    assert (distance[0, 0] == np.inf).all() and (distance[0, 1] == -np.inf).all()
    close(distance[1, 2], signed_distance(masks[1, 2], (1.0, 0.5)))
    close(signed_distance(~masks, (1.0, 0.5)), -distance)
    assert ((distance > 0) == masks).all()


@few
@given(seeds, spacings)
def test_pixels_that_do_not_count_are_on_neither_side(seed, spacing):
    shape = SHAPES[len(spacing)]
    rng = np.random.default_rng(seed)
    mask, valid = rng.random(shape) > 0.5, rng.random(shape) > 0.3
    inside, counted = mask.ravel(), valid.ravel()
    other = (inside[:, None] != inside[None]) & counted[None]
    nearest = np.where(other, apart(shape, spacing), np.inf).min(1)
    close(signed_distance(mask, spacing, valid).ravel(), np.where(inside, nearest, -nearest))
    anything = np.where(valid, mask, rng.random(shape) > 0.5)
    close(signed_distance(anything, spacing, valid)[valid], signed_distance(mask, spacing, valid)[valid])


# geodesic distance


@pytest.mark.parametrize("shape", [(21, 30), (9, 8, 10)])
def test_on_a_constant_picture_it_is_euclid_up_to_the_few_directions(shape):
    """With |steps| sorted a >= b (>= c), the path is c diagonals in space, b − c in the plane, a − b straight.

    The worst direction is √(1 + (√2 − 1)²) = 1.0824 of Euclid in 2-D, √(1 + (√2 − 1)² + (√3 − √2)²) = 1.1281 in 3-D.
    """
    start = tuple(n // 3 for n in shape)
    seeds = np.zeros(shape, bool)
    seeds[start] = True
    distance = geodesic_distance(np.full((2, *shape), 7.0), seeds, (2.0,) * len(shape), 0.0)
    steps = np.abs(np.indices(shape) - np.reshape(start, (-1, *(1,) * len(shape))))
    straight = 2 * np.sqrt((steps**2).sum(0))
    steps = np.sort(steps, axis=0)[::-1]
    roots = [math.sqrt(i + 1) for i in range(len(shape))]
    exact = 2 * sum((root - before) * s for root, before, s in zip(roots, [0, *roots], steps, strict=False))
    close(distance, exact)
    assert (distance >= straight - 1e-4).all()
    worst = math.sqrt(sum((root - before) ** 2 for root, before in zip(roots, [0, *roots], strict=False)))
    assert worst < {2: 1.083, 3: 1.129}[len(shape)] and (distance <= worst * straight + 1e-4).all()


@few
@given(seeds, spacings, st.floats(0, 1))
def test_geodesic_distance_is_the_shortest_path(seed, spacing, weight):
    rng, shape = np.random.default_rng(seed), SHAPES[len(spacing)]
    image = rng.normal(size=(2, *shape))
    seeded = rng.random(shape) > 0.9
    seeded.flat[3] = True
    close(geodesic_distance(image, seeded, spacing, weight), walked(image, seeded, spacing, weight))


def test_a_path_goes_around_a_bright_wall():
    """λ = ½: through a wall of height 100 two steps of √½·√(1 + 100²), 141 in all; around its open end 4.8.

    (0, 0), (0, 1), (0, 2), (1, 3), (2, 2), (2, 1), (2, 0): lengths 1, 1, √2, √2, 1, 1, each times √½.
    """
    image = np.zeros((1, 3, 4))
    image[0, 1, :3] = 100
    seeds = np.zeros((3, 4), bool)
    seeds[0, 0] = True
    distance = geodesic_distance(image, seeds, (1.0, 1.0), 0.5)
    close(distance[2, 0], math.sqrt(0.5) * (4 + 2 * math.sqrt(2)))
    assert distance[1, 0] > 70


def test_intensity_alone_costs_nothing_on_a_constant_picture():
    seeds = np.zeros((4, 5), bool)
    seeds[1, 1] = True
    assert not geodesic_distance(np.ones((1, 4, 5)), seeds, (1.0, 1.0), 1.0).any()


def test_without_seeds_everything_is_infinitely_far():
    assert (geodesic_distance(np.ones((1, 2, 3)), np.zeros((2, 3), bool), (1.0, 1.0), 0.5) == np.inf).all()


# membership


def test_membership_by_hand():
    """One pixel of a row of three: D = (0, 1, 2), mean 1, exp = (1, 1/e, 1/e²): (1, 1/(e + 1), 0)."""
    masks = np.array([[[True, False, False]], [[False, False, False]]])
    membership = geodesic_membership(np.zeros((1, 1, 3)), masks, (1.0, 1.0), 0.0)
    assert membership.dtype == np.float32
    close(membership[:, 0], [[1, 1 / (math.e + 1), 0], [0, 0, 0]])


@few
@given(seeds, st.floats(0, 1))
def test_membership_is_in_the_unit_interval_and_one_somewhere_in_the_region(seed, weight):
    rng = np.random.default_rng(seed)
    masks, image = rng.random((3, 8, 9)) > 0.7, rng.normal(size=(1, 8, 9))
    membership = geodesic_membership(image, masks, (1.0, 2.0), weight)
    assert membership.min() >= 0 and membership.max() <= 1
    assert all(membership[k][mask].max() == 1 for k, mask in enumerate(masks))


def test_every_connected_part_has_a_core_and_a_full_region_is_its_core():
    """A square of 9² and one of 3² pixels: depths up to 5 and 2, so the cores begin at depths 3 and 1."""
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 1:10, 1:10] = masks[0, 14:17, 14:17] = True
    masks[1] = True
    membership = geodesic_membership(np.zeros((1, 20, 20)), masks, (1.0, 1.0), 0.0)
    ones = np.zeros((20, 20), bool)
    ones[3:8, 3:8] = ones[14:17, 14:17] = True
    assert ((membership[0] == 1) == ones).all()
    assert (membership[1] == 1).all()


def test_the_background_has_what_the_classes_leave():
    labels = np.zeros((6, 7), int)
    labels[1:3, 1:3], labels[4, 5] = 1, 3  # class 2 is absent
    masks = labels[None] == np.arange(4)[:, None, None]
    image = np.random.default_rng(0).normal(size=(1, 6, 7))
    membership = one_hot_geodesic_membership(image, masks, (1.0, 1.0), 0.5)
    close(membership[1:], geodesic_membership(image, masks[1:], (1.0, 1.0), 0.5))
    close(membership[0], 1 - (membership[1] + membership[3]) / 2)
    empty = one_hot_geodesic_membership(image, (labels < 0)[None] == np.arange(2)[:, None, None], (1.0, 1.0), 0.5)
    assert (empty[0] == 1).all() and not empty[1].any()


M, PICTURE = np.zeros((2, 3), bool), np.zeros((1, 2, 3))
NAN = np.full((1, 2, 3), np.nan)
ERRORS = {
    "masks must be bool, got uint8": lambda: signed_distance(M.astype(np.uint8), (1.0, 1.0)),
    "masks of shape (2, 3) have fewer axes than the spacing (1.0, 1.0, 1.0)": lambda: signed_distance(M, (1.0,) * 3),
    "spacing must be 2 or 3 finite numbers > 0, got (1.0,)": lambda: signed_distance(M, (1.0,)),
    "spacing must be 2 or 3 finite numbers > 0, got (1.0, 0.0)": lambda: signed_distance(M, (1.0, 0.0)),
    "spacing must be 2 or 3 finite numbers > 0, got (1.0, nan)": lambda: geodesic_distance(
        PICTURE, M, (1.0, math.nan), 0.5
    ),
    "image (2, 3) must be (C, *spatial) for masks of (2, 3) and 2 spacings": (
        lambda: geodesic_distance(PICTURE[0], M, (1.0, 1.0), 0.5)
    ),
    "image (1, 1, 2, 3) must be (C, *spatial) for masks of (1, 2, 3) and 2 spacings": (
        lambda: geodesic_distance(PICTURE[None], M[None], (1.0, 1.0), 0.5)
    ),
    "image must be finite": lambda: geodesic_membership(NAN, M[None], (1.0, 1.0), 0.5),
    "masks must be bool, got float64": lambda: geodesic_membership(PICTURE, PICTURE, (1.0, 1.0), 0.5),
    "valid must be bool (2, 3), got bool (3, 2)": lambda: signed_distance(M, (1.0, 1.0), M.T),
    "valid must be bool (2, 3), got uint8 (2, 3)": lambda: geodesic_membership(
        PICTURE, M[None], (1.0, 1.0), 0.5, M.astype(np.uint8)
    ),
    "gradient_weight must be in 0..1, got 1.5": lambda: geodesic_distance(PICTURE, M, (1.0, 1.0), 1.5),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message


def test_no_path_leads_through_pixels_that_do_not_count():
    """A wall of pixels that do not count but for one gap; behind a whole one is nothing to reach."""
    seeds, valid = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    seeds[0, 0], valid[1, :3] = True, False
    distance = geodesic_distance(np.zeros((1, 3, 4)), seeds, (1.0, 1.0), 0.0, valid)
    close(distance[2], [4 + 2 * math.sqrt(2), 3 + 2 * math.sqrt(2), 2 + 2 * math.sqrt(2), 3 + math.sqrt(2)])
    assert np.isinf(distance[1, :3]).all()
    valid[1] = False
    assert np.isinf(geodesic_distance(np.zeros((1, 3, 4)), seeds, (1.0, 1.0), 0.0, valid)[1:]).all()
    seeds[0, 0], seeds[1, 1] = False, True  # a seed that does not count is none
    assert np.isinf(geodesic_distance(np.zeros((1, 3, 4)), seeds, (1.0, 1.0), 0.0, valid)).all()


def test_a_membership_is_that_of_the_pixels_that_count():
    """Cut out, and on a larger grid whose other pixels hold anything; where no path leads it is 0."""
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(1, 8, 7)), np.zeros((1, 8, 7), bool)
    mask[0, 2:6, 3:] = True  # as deep at the edge as it is wide
    expected = geodesic_membership(image, mask, (1.0, 1.0), 0.5)
    large, others = rng.normal(size=(1, 11, 10)), rng.random((1, 11, 10)) > 0.5
    large[:, :8, :7], others[:, :8, :7] = image, mask
    valid = np.zeros((11, 10), bool)
    valid[:8, :7] = True
    found = geodesic_membership(large, others, (1.0, 1.0), 0.5, valid)
    close(found[:, :8, :7], expected)
    assert found.sum() == pytest.approx(expected.sum())
    valid[:, 5] = False
    apart_ = geodesic_membership(large, np.where(np.arange(10) < 5, others, False), (1.0, 1.0), 0.5, valid)
    assert (apart_[..., 5:] == 0).all() and apart_.max() == 1 and np.isfinite(apart_).all()


@pytest.mark.parametrize("axes", [2, 3])
def test_half_of_the_neighbours_is_enough(axes):
    """A seed in any corner reaches the opposite one along the diagonal: edges are walked in both directions."""
    for corner in itertools.product((0, -1), repeat=axes):
        seeds = np.zeros((4,) * axes, bool)
        seeds[corner] = True
        distance = geodesic_distance(np.zeros((1, *seeds.shape)), seeds, (1.0,) * axes, 0.0)
        close(distance[tuple(-1 - c for c in corner)], 3 * math.sqrt(axes))
