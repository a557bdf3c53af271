"""Arms of a study by hand: what is averaged over regions, and calibration over the same patients."""

import pytest

from eval.calibration_error import UNITS, Reliability
from eval.medical_arms import calibration_difference, case_values, compare_runs
from eval.medical_metrics import MedicalRow
from eval.medical_summary import MEANS


def row(case, dice, region="polyp", patient=None, near=(10, 9.0, 9)):
    pixels, probability, foreground = near
    counts = Reliability(*((0,) * 14 + (n,) for n in (pixels, round(probability * UNITS), foreground)))
    values = dict.fromkeys(MEANS, dice)
    return MedicalRow(
        case, patient or case, region, 1, 5, 5, **values, calibration=Reliability(), boundary_calibration=counts
    )


def run(*dice):
    return [row(f"case {i}", value) for i, value in enumerate(dice)]


def test_a_case_counts_with_the_mean_over_its_regions():
    rows = [row("b", 0.2, "head", "x"), row("a", 1.0, "head"), row("b", 0.6, "tail", "x"), row("a", 0.5, "tail")]
    found = case_values([rows, rows[::-1]], "dice")
    assert found.cases == ("a", "b") and found.patients == ("a", "x")
    assert found.values_SC.ravel().tolist() == pytest.approx([0.75, 0.4] * 2)


def test_arms_are_compared_case_by_case():
    """A gain of 0.1 in every case of both seeds, in whatever order the rows come."""
    arms = {"base": [run(0.5, 0.7), run(0.6, 0.8)], "new": [run(0.6, 0.8)[::-1], run(0.7, 0.9)]}
    (found,) = compare_runs(arms, "base", "dice").values()
    assert (found.difference, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (found.cases, found.seeds) == (2, 2)


def test_the_difference_of_calibration_by_hand():
    """Control: of 10 pixels 9 expected and 4 true, 0.5 off. Arm: 6 expected, 0.2 off. In every patient: no spread."""
    rows = lambda expected: [row(c, 1, near=(10, expected, 4)) for c in "abc"]  # noqa: E731
    found = calibration_difference([rows(6.0)], [rows(9.0)], "boundary_ece")
    assert found == pytest.approx((-0.3, -0.3, -0.3))


def test_calibration_is_averaged_over_seeds_and_patients_without_a_boundary_are_passed_over():
    rows = lambda expected: [row("a", 1, near=(10, expected, 4)), row("b", 1, near=(0, 0, 0))]  # noqa: E731
    found = calibration_difference([rows(6.0), rows(4.0)], [rows(9.0), rows(9.0)], "boundary_ece")
    assert found == pytest.approx((-0.4, -0.4, -0.4))


def test_calibration_is_pooled_over_the_patients_drawn():
    """One patient is 0.5 better and one as before: drawn alone, together, or either one."""
    control = [row("a", 1, near=(10, 9.0, 4)), row("b", 1, near=(10, 9.0, 4))]
    arm = [row("a", 1, near=(10, 4.0, 4)), row("b", 1, near=(10, 9.0, 4))]
    assert calibration_difference([arm], [control], "boundary_ece") == pytest.approx((-0.25, -0.5, 0.0))


@pytest.mark.parametrize(
    "arm, message",
    [
        ([run(0.5)], "runs were scored on different cases or regions"),
        ([[row("case 0", 1), row("case 1", 1, patient="x")]], "runs were scored on different cases or regions"),
        ([[]], "no rows to compare; score at least one case"),
        ([], "the arm has 0 seeds and the control 1; run as many of both"),
        ([run(0.5, 0.6)] * 2, "the arm has 2 seeds and the control 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(arm, message):
    with pytest.raises(ValueError, match=message):
        calibration_difference(arm, [run(0.5, 0.6)], "boundary_ece")


def test_seeds_of_an_arm_must_agree():
    with pytest.raises(ValueError, match="different cases or regions; score all on the same split"):
        case_values([run(0.5, 0.6), run(0.5)], "dice")
    with pytest.raises(ValueError, match="no rows to compare"):
        case_values([], "dice")


def test_a_metric_must_be_one():
    with pytest.raises(ValueError, match="no metric 'ece' of a case; there: dice, iou"):
        case_values([run(0.5)], "ece")
    with pytest.raises(ValueError, match="no calibration 'dice'; there: ece, boundary_ece"):
        calibration_difference([run(0.5)], [run(0.5)], "dice")
    with pytest.raises(ValueError, match="no case has a boundary"):
        calibration_difference([run(0.5)], [run(0.5)], "ece")
