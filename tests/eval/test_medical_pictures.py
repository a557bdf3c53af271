"""Which cases are shown, and where their pixels land."""

import numpy as np
import pytest

from eval.calibration_error import Reliability
from eval.medical_metrics import MedicalRow
from eval.medical_pictures import SIDE, case_picture, extreme_cases
from eval.medical_summary import MEANS
from popen.overlay import PALETTE


def row(case, dice, region="polyp"):
    values = dict.fromkeys(MEANS, dice)
    return MedicalRow(
        case, case, region, 1, 1, 1, **values, calibration=Reliability(), boundary_calibration=Reliability()
    )


def test_extremes_are_by_the_mean_over_regions():
    """Means: a 0.5, b 0.6, c 0.2, d 0.55: worst c, median of four the lower one a, best b."""
    rows = [row("a", 0.5), row("b", 1.0), row("b", 0.2, "x"), row("c", 0.2), row("d", 0.1), row("d", 1.0, "x")]
    assert extreme_cases(rows) == {"worst": "c", "median": "a", "best": "b"}


def test_one_case_is_all_three_and_none_is_an_error():
    assert extreme_cases([row("a", 0.5)]) == {"worst": "a", "median": "a", "best": "a"}
    with pytest.raises(ValueError, match="no rows to choose from"):
        extreme_cases([])


def test_truth_is_left_and_prediction_right():
    """Top half true, bottom half predicted: tinted there, grey elsewhere."""
    image = np.full((3, 8, 8), 100, np.float32)
    truth, predicted = np.zeros((2, 1, 8, 8), bool)
    truth[0, :4] = predicted[0, 4:] = True
    drawn = np.asarray(case_picture(image, truth, predicted, (1.0, 1.0)))
    assert drawn.shape == (SIDE, 2 * SIDE, 3)
    quarter = SIDE // 4
    tinted = [bool((drawn[y, x] != 100).any()) for y in (quarter, 3 * quarter) for x in (2 * quarter, 6 * quarter)]
    assert tinted == [True, False, False, True]


def test_regions_have_colours_of_their_own():
    truth = np.zeros((2, 8, 8), bool)
    truth[0, :, :3] = truth[1, :, 5:] = True
    drawn = np.asarray(case_picture(np.zeros((1, 8, 8), np.float32), truth, truth, (1.0, 1.0)))
    edges = {tuple(pixel) for pixel in drawn[SIDE // 2].tolist()}
    assert set(PALETTE[:2]) <= edges


def test_pixels_come_out_square():
    image, masks = np.zeros((1, 10, 20), np.float32), np.zeros((1, 10, 20), bool)
    assert case_picture(image, masks, masks, (4.0, 1.0)).size == (2 * SIDE, 2 * SIDE)


def test_a_volume_is_seen_from_the_feet_at_its_fullest_slice():
    """RAS+: x grows to the patient's right, which is shown at left; y to the front, which is shown on top."""
    image = np.zeros((1, 6, 6, 3), np.float32)
    image[0, 5, :, 2] = 1  # the patient's right in the last slice
    image[0, :, :, 1] = 7  # not the slice with most of the masks
    truth = np.zeros((1, 6, 6, 3), bool)
    truth[0, 2:4, 4:, 2] = True  # in front, in the middle
    truth[0, 0, 0, 1] = True
    drawn = np.asarray(case_picture(image, truth, np.zeros_like(truth), (1.0, 1.0, 5.0)))
    assert drawn.shape == (SIDE, 2 * SIDE, 3)
    right_half = drawn[:, SIDE:].astype(int)
    assert (
        right_half[SIDE // 2, SIDE // 16].tolist() == [255] * 3
        and right_half[SIDE // 2, -SIDE // 2].tolist() == [0] * 3
    )
    assert drawn[SIDE // 6, SIDE // 2].any() and not drawn[5 * SIDE // 6, SIDE // 2].any()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"picture \(1, 4, 4\), truth \(1, 4, 4\) and predicted \(1, 4, 5\) differ"):
        case_picture(np.zeros((1, 4, 4)), np.zeros((1, 4, 4), bool), np.zeros((1, 4, 5), bool), (1.0, 1.0))


def test_the_variance_stands_on_the_right_and_is_white_where_half_agree():
    image, masks = np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 8), bool)
    variance = np.zeros((8, 8))
    variance[:4], variance[4:, :4] = 0.25, 0.125
    drawn = np.asarray(case_picture(image, masks, masks, (1.0, 1.0), variance))
    assert drawn.shape == (SIDE, 3 * SIDE, 3)
    quarter = SIDE // 4
    seen = [drawn[y, 2 * SIDE + x, 0] for y in (quarter, 3 * quarter) for x in (quarter, 3 * quarter)]
    assert seen == [255, 255, 128, 0]
    with pytest.raises(ValueError, match=r"variance \(4, 8\), and the picture is \(8, 8\)"):
        case_picture(image, masks, masks, (1.0, 1.0), variance[:4])
