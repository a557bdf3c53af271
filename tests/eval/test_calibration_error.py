"""Calibration by hand on a few pixels, and the same number in whatever order counts are added."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from eval.calibration_error import BINS, UNITS, Reliability, boundary_band, ece, reliability


def test_by_hand():
    """Bin 3 (0.2–0.267): 0.25 four times, one of them true: right. Bin 11 (0.733–0.8): 0.75 twice, none true.

    ECE = 4/6 · 0 + 2/6 · 0.75.
    """
    counts = reliability(np.array([0.25] * 4 + [0.75] * 2), np.array([True] + [False] * 5))
    assert counts.pixels == (0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0)
    assert counts.probability[3] == UNITS and counts.probability[11] == 1.5 * UNITS
    assert counts.foreground == (0, 0, 0, 1) + (0,) * 11
    assert ece(counts) == pytest.approx(0.25)


def test_errors_of_one_sign_do_not_cancel_across_bins():
    """0.1 always true and 0.9 never: 0.9 off in both bins, though the means agree."""
    assert ece(reliability(np.array([0.1, 0.9]), np.array([True, False]))) == pytest.approx(0.9)


def test_certainty_that_is_right_is_calibrated():
    truth = np.array([[True, False], [False, True]])
    assert ece(reliability(truth.astype(np.float32), truth)) == 0
    assert ece(reliability(truth.astype(np.float32), ~truth)) == 1


def test_one_belongs_to_the_last_bin_and_lower_edges_to_their_own():
    counts = reliability(np.array([0.0, 0.2, 0.6, 1.0]), np.zeros(4, bool))
    assert np.flatnonzero(counts.pixels).tolist() == [0, 3, 9, 14]


def test_nothing_has_no_error():
    with pytest.raises(ValueError, match="no pixels to calibrate on"):
        ece(Reliability())
    assert reliability(np.zeros((0, 3)), np.zeros((0, 3), bool)) == Reliability()


cases = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.float32, n, elements=st.floats(0, 1, width=32)),
        arrays.arrays(bool, n),
        st.permutations(range(n)),
    )
)


@settings(max_examples=40, deadline=None)
@given(cases, st.integers(1, 7))
def test_chunks_in_any_order_give_the_same_counts(case, chunk):
    probabilities, truth, order = case
    whole = reliability(probabilities, truth)
    pooled = Reliability()
    for start in range(0, len(order), chunk):
        own = list(order[start : start + chunk])
        pooled = pooled + reliability(probabilities[own], truth[own])
    assert pooled == whole


@settings(max_examples=40, deadline=None)
@given(cases)
def test_as_bins_taken_one_by_one_give_it(case):
    probabilities, truth, _ = case
    total = 0.0
    for b in range(BINS):
        own = [i for i, p in enumerate(probabilities) if min(math.floor(float(p) * BINS), BINS - 1) == b]
        if own:
            gap = np.mean([float(probabilities[i]) for i in own]) - np.mean([truth[i] for i in own])
            total += len(own) / len(truth) * abs(gap)
    assert ece(reliability(probabilities, truth)) == pytest.approx(total, abs=1e-7)


@pytest.mark.parametrize(
    "probabilities, truth, message",
    [
        (np.zeros(3), np.zeros(4, bool), r"probabilities \(3,\) and truth \(4,\) differ in size"),
        (np.zeros(3), np.zeros(3), "truth must be bool, not float64"),
        (np.array([0.5, 1.5]), np.zeros(2, bool), "must lie in 0..1 and not be NaN; put logits through"),
        (np.array([0.5, float("nan")]), np.zeros(2, bool), "must lie in 0..1 and not be NaN"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities, truth, message):
    with pytest.raises(ValueError, match=message):
        reliability(probabilities, truth)


def test_a_band_has_as_many_layers_inside_as_outside():
    """Columns 0–4 of 10 are foreground. 1 mm: columns 4 and 5; 2 mm: 3 to 6; 2 mm at 2 mm a column: 4 and 5."""
    truth = np.zeros((3, 10), bool)
    truth[:, :5] = True
    columns = lambda spacing, width: np.flatnonzero(boundary_band(truth, spacing, width)[1]).tolist()  # noqa: E731
    assert columns((1.0, 1.0), 1.0) == [4, 5]
    assert columns((1.0, 1.0), 2.0) == [3, 4, 5, 6]
    assert columns((1.0, 2.0), 2.0) == [4, 5]
    assert boundary_band(truth, (1.0, 1.0), 20.0).all()


def test_the_edge_of_the_picture_is_no_boundary():
    truth = np.zeros((3, 10), bool)
    truth[:, :5] = True
    assert not boundary_band(truth, (1.0, 1.0), 1.0)[:, 0].any()


@pytest.mark.parametrize("fill", [False, True])
def test_without_two_labels_there_is_no_boundary(fill):
    assert not boundary_band(np.full((4, 4), fill), (1.0, 1.0), 2.0).any()


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(st.tuples(st.integers(2, 9), st.integers(2, 9)), st.tuples(*[st.integers(2, 5)] * 3)).flatmap(
        lambda shape: arrays.arrays(bool, shape)
    ),
    st.lists(st.sampled_from([0.5, 0.8, 1.5]), min_size=3, max_size=3),
    st.sampled_from([1.5, 1.6, 2.3, 4.0]),
)
def test_the_band_as_all_pairs_give_it(truth, spacing, width):
    spacing = tuple(spacing[: truth.ndim])
    places = np.argwhere(np.ones_like(truth)) * np.array(spacing)
    flat = truth.ravel()
    pairs = np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))
    pairs[flat[:, None] == flat[None]] = np.inf
    nearest = pairs.min(1)
    if np.isclose(nearest, width, rtol=1e-9).any():
        width += 1e-3
    np.testing.assert_array_equal(boundary_band(truth, spacing, width).ravel(), nearest <= width)


def test_the_band_is_measured_within_reach_of_a_small_structure():
    """One pixel in a wide picture: the band of 3 mm is the disc of 29 pixels around it, wherever it lies."""
    for place in [(20, 20), (20, 3), (36, 36)]:
        truth = np.zeros((40, 40), bool)
        truth[place] = True
        assert boundary_band(truth, (1.0, 1.0), 3.0).sum() == 29


@pytest.mark.parametrize(
    "truth, spacing, width, message",
    [
        (np.zeros((3, 3)), (1.0, 1.0), 1.0, "truth must be bool"),
        (np.zeros((3, 3), bool), (1.0,), 1.0, "must be a positive finite number of mm for each axis"),
        (np.zeros((3, 3), bool), (2.0, 1.5), 1.0, "a band of 1.0 mm holds no pixel at a spacing of"),
        (np.zeros((3, 3), bool), (1.0, 1.0), float("inf"), "a band of inf mm"),
        (np.zeros((1, 3, 3), bool), (0.5, 2.0, 2.0), 1.0, "holds no pixel"),
    ],
)
def test_what_is_no_band_is_refused(truth, spacing, width, message):
    with pytest.raises(ValueError, match=message):
        boundary_band(truth, spacing, width)
