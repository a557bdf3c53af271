"""Surface distances against all pairs of surface pixels, and by hand on squares and cubes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from eval.surface_distances import (
    SurfaceDistances,
    asd,
    assd,
    bounding_box,
    hd95,
    nsd,
    surface,
    surface_distances,
)


def box(shape, *spans):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


def brute_surface(mask):
    """Indices of pixels with a face neighbour outside, looked up one by one; an axis of one pixel has none."""
    found = []
    for index in zip(*np.nonzero(mask), strict=True):
        for axis, size in enumerate(mask.shape):
            for step in (-1, 1) if size > 1 else ():
                other = list(index)
                other[axis] += step
                if not 0 <= other[axis] < size or not mask[tuple(other)]:
                    found.append(index)
    return np.array(sorted(set(found)))


def brute(predicted, truth, spacing):
    """Directed distances by all pairs, sorted."""
    p, t = (brute_surface(mask) * np.array(spacing) for mask in (predicted, truth))
    pairs = np.sqrt(((p[:, None] - t[None]) ** 2).sum(-1))
    return pairs.min(1), pairs.min(0)


two_masks = st.one_of(
    st.tuples(st.integers(2, 8), st.integers(2, 8)), st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(1, 5))
).flatmap(lambda shape: st.tuples(arrays.arrays(bool, shape), arrays.arrays(bool, shape)))
spacings = st.lists(st.sampled_from([0.5, 0.7, 1.0, 1.25, 3.0]), min_size=3, max_size=3)


@settings(max_examples=80, deadline=None)
@given(two_masks, spacings)
def test_as_all_pairs_give_it(masks, spacing):
    predicted, truth = (mask.copy() for mask in masks)
    predicted.flat[0] = truth.flat[-1] = True
    spacing = tuple(spacing[: truth.ndim])
    found = surface_distances(predicted, truth, spacing)
    to_truth, to_predicted = brute(predicted, truth, spacing)
    np.testing.assert_allclose(np.sort(found.to_truth), np.sort(to_truth), atol=1e-12)
    np.testing.assert_allclose(np.sort(found.to_predicted), np.sort(to_predicted), atol=1e-12)
    assert assd(found) == pytest.approx(np.concatenate([to_truth, to_predicted]).mean())
    assert asd(found) == pytest.approx(to_truth.mean())
    assert hd95(found) == pytest.approx(max(np.percentile(to_truth, 95), np.percentile(to_predicted, 95)))


@settings(max_examples=30, deadline=None)
@given(two_masks)
def test_one_slice_is_a_picture(masks):
    predicted, truth = (mask.reshape(mask.shape[0], -1).copy() for mask in masks)
    predicted[0, 0] = truth[-1, -1] = True
    flat = surface_distances(predicted, truth, (0.5, 2.0))
    for axis in range(3):
        spacing = [0.5, 2.0]
        spacing.insert(axis, 7.0)
        thick = surface_distances(np.expand_dims(predicted, axis), np.expand_dims(truth, axis), tuple(spacing))
        np.testing.assert_array_equal(thick.to_truth, flat.to_truth)
        np.testing.assert_array_equal(thick.to_predicted, flat.to_predicted)


def test_a_flat_structure_in_a_thick_volume_is_all_surface():
    """A plate of one slice in a volume of three: its inner pixel, too, has faces to the outside."""
    plate, shifted = box((3, 5, 5), (1, 2), (1, 4), (1, 4)), box((3, 5, 5), (2, 3), (1, 4), (1, 4))
    found = surface_distances(plate, shifted, (2.0, 1.0, 1.0))
    assert found.to_truth.tolist() == found.to_predicted.tolist() == [2.0] * 9


def test_a_square_inside_a_square_by_hand():
    """A pixel in the middle of a 5 × 5 square of 16 surface pixels: the 4 middles of its sides lie 2 away, their
    8 neighbours √5, the 4 corners √8."""
    truth, predicted = box((9, 9), (2, 7), (2, 7)), box((9, 9), (4, 5), (4, 5))
    found = surface_distances(predicted, truth, (1.0, 1.0))
    assert found.to_truth.tolist() == [2.0]
    expected = [2.0] * 4 + [5**0.5] * 8 + [8**0.5] * 4
    np.testing.assert_allclose(np.sort(found.to_predicted), expected)
    assert asd(found) == 2.0
    assert assd(found) == pytest.approx((2 + sum(expected)) / 17)
    assert hd95(found) == pytest.approx(8**0.5)  # rank 14.25 of 0..15, among the corners
    assert nsd(found, 2.0) == pytest.approx(5 / 17) and nsd(found, 2.3) == pytest.approx(13 / 17)
    assert nsd(found, 1.9) == 0 and nsd(found, 3) == 1


def test_a_shifted_cube_by_hand():
    """A cube of 2³ moved by one pixel of 3 mm: half of its 8 pixels are shared (0), half lie 3 mm off."""
    truth, predicted = box((4, 4, 6), (1, 3), (1, 3), (1, 3)), box((4, 4, 6), (1, 3), (1, 3), (2, 4))
    found = surface_distances(predicted, truth, (1.0, 1.0, 3.0))
    assert sorted(found.to_truth) == sorted(found.to_predicted) == [0.0] * 4 + [3.0] * 4
    assert assd(found) == 1.5 and hd95(found) == 3.0 and nsd(found, 1.0) == 0.5


def test_spacing_says_which_neighbour_is_nearest():
    """The truth has a pixel 2 rows below (2 × 0.5 mm) and one 1 column beside (1 × 4 mm): the rows are nearer."""
    truth, predicted = box((4, 3), (2, 3), (0, 1)) | box((4, 3), (0, 1), (1, 2)), box((4, 3), (0, 1), (0, 1))
    assert surface_distances(predicted, truth, (0.5, 4.0)).to_truth.tolist() == [1.0]
    assert surface_distances(predicted, truth, (4.0, 0.5)).to_truth.tolist() == [0.5]


def test_hd95_takes_the_worse_direction_and_not_the_pool():
    """One far pixel of two against a hundred at 0: pooled, the percentile would be 0."""
    found = SurfaceDistances(np.array([0.0, 10.0]), np.zeros(100))
    assert hd95(found) == pytest.approx(9.5)
    assert np.percentile(np.concatenate([found.to_truth, found.to_predicted]), 95) == 0


def test_the_edge_of_the_picture_is_surface():
    """A mask that fills 3 × 3 has the frame of 8 as its surface, the middle excepted."""
    assert surface(np.ones((3, 3), bool)).sum() == 8
    assert surface(box((5, 5), (0, 3), (0, 5))).tolist()[1] == [True, False, False, False, True]


def test_corners_are_no_neighbours():
    """An outside pixel that touches a mask by a corner alone does not make the pixel there a surface."""
    mask = np.ones((5, 5), bool)
    mask[1, 1] = False
    assert not surface(mask)[2, 2] and surface(mask)[2, 1]


def test_equal_masks_are_nowhere_apart():
    mask = box((6, 6), (1, 4), (2, 6))
    found = surface_distances(mask, mask, (1.0, 2.0))
    assert hd95(found) == asd(found) == assd(found) == 0 and nsd(found, 0) == 1


def test_the_bounding_box_is_tight():
    assert bounding_box(box((9, 7, 5), (2, 6), (3, 4), (0, 5))) == (slice(2, 6), slice(3, 4), slice(0, 5))


ONE = box((4, 4), (1, 3), (1, 3))


@pytest.mark.parametrize(
    "predicted, truth, spacing, message",
    [
        (ONE, ONE[:, :3], (1.0, 1.0), r"predicted \(4, 4\) and truth \(4, 3\) differ in size"),
        (ONE.astype(np.uint8), ONE, (1.0, 1.0), "must be bool, not uint8 and bool"),
        (ONE, ONE, (1.0, 1.0, 1.0), r"spacing \(1.0, 1.0, 1.0\) must be a positive finite number of mm for each axis"),
        (ONE, ONE, (1.0, 0.0), "must be a positive finite number"),
        (ONE, ONE, (1.0, float("nan")), "must be a positive finite number"),
        (ONE, np.zeros((4, 4), bool), (1.0, 1.0), "an empty mask has no surface"),
        (np.zeros((4, 4), bool), ONE, (1.0, 1.0), "an empty mask has no surface"),
    ],
)
def test_what_cannot_be_measured_is_refused(predicted, truth, spacing, message):
    with pytest.raises(ValueError, match=message):
        surface_distances(predicted, truth, spacing)


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_is_a_number_of_mm(tolerance):
    with pytest.raises(ValueError, match="must be a finite number of mm from 0 on"):
        nsd(surface_distances(ONE, ONE, (1.0, 1.0)), tolerance)
