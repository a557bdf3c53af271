"""Scores of cases by hand, on strips and squares, and the policy for regions that are missing."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from eval.medical_metrics import (
    MissingPolicy,
    ScoringProtocol,
    diagonal,
    dice,
    iou,
    read_medical_rows,
    row_from_json,
    score_case,
    score_masks,
)
from eval.metrics import MaskCounts
from eval.rows import write_rows
from popen.data.safe_io import DataError

SHAPE, SPACING = (4, 7), (1.0, 2.0)
DIAGONAL = 3 * math.sqrt(17)  # √((3 · 1)² + (6 · 2)²)


def strip(start, stop, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[..., start:stop] = True
    return mask


def score(predicted, truth, protocol=None, spacing=SPACING):
    """The row of one region, every pixel predicted for certain."""
    (row,) = score_case(predicted[None].astype(float), truth[None], spacing, 0.5, ["polyp"], "case 1", "ann", protocol)
    return row


def test_dice_and_iou_come_from_counts():
    """6 of 10 shared: IoU 0.6, Dice 2 · 6 / (6 + 10)."""
    assert iou(MaskCounts(6, 10)) == 0.6 and dice(MaskCounts(6, 10)) == 0.75
    assert iou(MaskCounts(0, 3)) == dice(MaskCounts(0, 3)) == 0
    for metric in (dice, iou):
        with pytest.raises(ValueError, match="two empty masks have no overlap"):
            metric(MaskCounts(0, 0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(1, 50))
def test_dice_follows_from_iou(intersection, more):
    counts = MaskCounts(intersection, intersection + more)
    assert dice(counts) == pytest.approx(2 * iou(counts) / (1 + iou(counts)))


def test_a_case_by_hand():
    """Truth columns 0–3, prediction 0–2, four rows: 12 of 16 pixels.

    The predicted surface is a frame of 10, of which (1, 2) and (2, 2) are inside the truth, 1 mm from its edge rows.
    The true surface is a frame of 12, of which the 4 of column 3 are outside the prediction, 2 mm off.
    """
    row = score(strip(0, 3), strip(0, 4))
    assert (row.case, row.patient, row.region) == ("case 1", "ann", "polyp")
    assert (row.intersection, row.predicted, row.truth) == (12, 12, 16)
    assert row.dice == pytest.approx(24 / 28) and row.iou == 0.75
    assert row.asd == pytest.approx(2 / 10)
    assert row.assd == pytest.approx((2 * 1 + 4 * 2) / 22)
    assert row.hd95 == 2.0
    assert row.nsd == pytest.approx(18 / 22)  # of 22, only the 4 at 2 mm lie beyond 1 mm
    assert not row.missed and not row.invented


def test_the_band_is_around_the_true_boundary():
    """Of 2 mm a side, a column each: 3 and 4. Predicted there: nothing of 4 true pixels. Of 4 mm: columns 2–5."""
    assert score(strip(0, 3), strip(0, 4)).band_dice == 0
    wide = score(strip(0, 3), strip(0, 4), ScoringProtocol(band=4.0))
    assert wide.band_dice == pytest.approx(2 * 4 / (4 + 8))


def test_calibration_counts_all_pixels_and_those_of_the_band():
    truth = strip(0, 4)
    probabilities = np.where(strip(0, 3), 1.0, 0.25)
    (row,) = score_case(probabilities[None], truth[None], SPACING, 0.5, ["polyp"], "a", "a")
    assert sum(row.calibration.pixels) == 28 and row.calibration.pixels[14] == 12
    assert sum(row.boundary_calibration.pixels) == row.boundary_calibration.pixels[3] == 8
    assert row.boundary_calibration.foreground[3] == 4


def test_nothing_where_nothing_is_scores_full():
    row = score(strip(0, 0), strip(0, 0))
    assert row.dice == row.iou == row.nsd == row.band_dice == 1
    assert row.hd95 == row.asd == row.assd == 0
    assert not row.missed and not row.invented


@pytest.mark.parametrize("missed", [True, False])
def test_one_empty_scores_nothing_and_the_diagonal(missed):
    """The picture's 4 × 7 pixels of 1 × 2 mm: 3 and 12 mm between the outermost centres."""
    masks = strip(0, 0), strip(2, 4)
    row = score(*masks) if missed else score(*masks[::-1])
    assert (row.missed, row.invented) == (missed, not missed)
    assert row.dice == row.iou == row.nsd == row.band_dice == 0
    assert row.hd95 == row.asd == row.assd == pytest.approx(DIAGONAL)


def test_another_policy_is_written_down_and_kept():
    policy = ScoringProtocol(missing=MissingPolicy(0.9, 3.0, 0.1, 0.5))
    both, one = score(strip(0, 0), strip(0, 0), policy), score(strip(0, 0), strip(0, 2), policy)
    assert both.dice == both.band_dice == 0.9 and both.hd95 == 3
    assert one.iou == one.nsd == 0.1 and one.assd == pytest.approx(DIAGONAL / 2)


def test_a_truth_without_boundary_is_its_own_band():
    """The structure fills the picture: what is right is counted everywhere, 16 of 28."""
    row = score(strip(0, 4), strip(0, 7))
    assert row.band_dice == row.dice == pytest.approx(2 * 16 / 44)
    assert sum(row.boundary_calibration.pixels) == 0


def test_no_distance_exceeds_the_diagonal():
    predicted, truth = np.zeros((2, *SHAPE), bool)
    predicted[0, 0] = truth[-1, -1] = True
    assert score(predicted, truth).hd95 == pytest.approx(DIAGONAL) == diagonal(SHAPE, SPACING)
    assert diagonal((1, *SHAPE), (9.0, *SPACING)) == pytest.approx(DIAGONAL)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**20 - 1), st.integers(0, 2**20 - 1))
def test_every_pair_of_masks_has_finite_scores(a, b):
    predicted, truth = (np.array([bool(n >> bit & 1) for bit in range(20)]).reshape(4, 5) for n in (a, b))
    row = score(predicted, truth)
    for name in ("dice", "iou", "nsd", "band_dice"):
        assert 0 <= getattr(row, name) <= 1
    for name in ("hd95", "asd", "assd"):
        assert 0 <= getattr(row, name) <= diagonal((4, 5), SPACING) + 1e-9


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(bool, (2, 4, 5)), st.integers(0, 2))
def test_a_volume_of_one_slice_scores_as_the_picture(masks, axis):
    spacing = list(SPACING)
    spacing.insert(axis, 5.0)
    thick = score(*np.expand_dims(masks, axis + 1), spacing=tuple(spacing))
    flat = score(*masks)
    for name in ("dice", "iou", "hd95", "asd", "assd", "nsd", "band_dice", "calibration", "boundary_calibration"):
        assert getattr(thick, name) == getattr(flat, name)


def test_regions_are_scored_apart_and_masks_may_come_from_classes():
    truth = np.stack([strip(0, 4), strip(4, 7)])
    predicted = np.stack([strip(0, 4), strip(0, 0)])
    first, second = score_masks(predicted, np.full(truth.shape, 0.4), truth, SPACING, ["front", "back"], "a", "b")
    assert (first.region, first.dice, first.missed) == ("front", 1, False)
    assert (second.region, second.dice, second.missed) == ("back", 0, True)


ONE = strip(0, 3)[None]


@pytest.mark.parametrize(
    "probabilities, truth, regions, message",
    [
        (
            np.zeros((2, *SHAPE)),
            ONE,
            ["a"],
            r"case 1: predicted \(2, 4, 7\), .* truth \(1, 4, 7\) and 1 regions differ",
        ),
        (np.zeros((1, *SHAPE)), ONE, ["a", "b"], "and 2 regions differ in size"),
        (np.zeros((1, *SHAPE)), ONE.astype(int), ["a"], "case 1, a: masks must be bool, not bool and int64"),
        (np.full((1, *SHAPE), math.nan), ONE, ["a"], "case 1, a: probabilities must lie in 0..1 and not be NaN"),
    ],
)
def test_what_does_not_fit_is_refused(probabilities, truth, regions, message):
    with pytest.raises(ValueError, match=message):
        score_case(probabilities, truth, SPACING, 0.5, regions, "case 1", "ann")


def test_rows_survive_a_file(tmp_path):
    rows = [score(strip(0, 3), strip(0, 4)), score_case(*[ONE * 0.3, ONE], SPACING, 0.5, ["x"], "case 2", "bob")[0]]
    write_rows(tmp_path / "rows.jsonl", [row.as_json() for row in rows])
    assert read_medical_rows(tmp_path / "rows.jsonl") == rows
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["id"] == "case 1/polyp"


@pytest.mark.parametrize("broken", [{"dice": None}, {"calibration": 3}, {"calibration": {"pixel": []}}, {"more": 1}])
def test_a_strange_row_is_named(broken):
    row = score(strip(0, 3), strip(0, 4)).as_json() | broken
    if row["dice"] is None:
        del row["dice"]
    with pytest.raises(DataError, match=r"here: row 'case 1/polyp' is no row of eval.medical .*; evaluate again"):
        row_from_json(row, "here")
