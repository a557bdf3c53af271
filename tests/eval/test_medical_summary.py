"""Means, counts and pooled calibration of hand-made rows."""

import numpy as np
import pytest

from eval.calibration_error import UNITS, Reliability
from eval.medical_metrics import MedicalRow, ScoringProtocol
from eval.medical_summary import MEANS, markdown, summarise


def bins(pixels, probability, foreground):
    """Counts that lie in the last bin alone."""
    return Reliability(*((0,) * 14 + (n,) for n in (pixels, round(probability * UNITS), foreground)))


def row(case, dice, region="polyp", patient=None, predicted=5, truth=5, near=(0, 0, 0), everywhere=(10, 9.0, 9)):
    values = dict.fromkeys(MEANS, dice) | {"hd95": 10 * (1 - dice)}
    return MedicalRow(
        case, patient or case, region, 1, predicted, truth, **values,
        calibration=bins(*everywhere), boundary_calibration=bins(*near),
    )  # fmt: skip


def test_means_are_over_cases_and_all_of_them():
    rows = [row("a", 1.0), row("b", 0.5), row("c", 0.0, predicted=0), row("d", 0.5, predicted=0, truth=0)]
    rows.append(row("e", 0.0, truth=0))
    found = summarise(rows)
    own = found["regions"]["polyp"]
    assert found["all"] == own
    assert own["dice"] == pytest.approx(0.4) and own["hd95"] == pytest.approx(6)
    assert (own["cases"], own["patients"], own["rows"]) == (5, 5, 5)
    assert (own["missed"], own["invented"], own["absent"]) == (1, 1, 1)
    for name in MEANS:
        assert own[f"{name}_95"][0] < own[name] < own[f"{name}_95"][1]


def test_patients_are_drawn_with_all_their_cases():
    """Four cases of one patient at 1, one of another at 0: either patient may be drawn alone."""
    own = summarise([*(row(f"a{i}", 1.0, patient="ann") for i in range(4)), row("b", 0.0, patient="bob")])["all"]
    assert (own["dice"], own["dice_95"], own["patients"]) == (0.8, (0.0, 1.0), 2)


def test_calibration_is_pooled_over_pixels():
    """10 pixels with 9 expected and 9 true, 90 with 90 expected and 45 true: (9 + 90 − 54) / 100, not (0 + ½) / 2."""
    rows = [row("a", 1.0, near=(4, 4.0, 2)), row("b", 1.0, everywhere=(90, 90.0, 45))]
    own = summarise(rows)["all"]
    assert own["ece"] == pytest.approx(0.45)
    assert own["ece_95"] == pytest.approx((0, 0.5))
    assert own["boundary_ece"] == pytest.approx(0.5) == own["boundary_ece_95"][0]


def test_without_a_boundary_there_is_no_boundary_ece():
    own = summarise([row("a", 1.0)])["all"]
    assert own["boundary_ece"] is own["boundary_ece_95"] is None
    assert markdown({"all": own, "regions": {"polyp": own}}, ScoringProtocol()).splitlines()[2].endswith("| – |")


def test_regions_stand_apart_and_together():
    rows = [row("a", 1.0, "head"), row("a", 0.0, "tail", predicted=0), row("b", 0.6, "head"), row("b", 0.4, "tail")]
    found = summarise(rows)
    assert {name: own["dice"] for name, own in found["regions"].items()} == pytest.approx({"head": 0.8, "tail": 0.2})
    assert found["all"]["dice"] == pytest.approx(0.5) and found["all"]["missed"] == 1
    assert (found["all"]["cases"], found["all"]["rows"]) == (2, 4)


def test_the_same_rows_in_another_order_give_the_same_numbers():
    rng = np.random.default_rng(0)
    rows = [row(f"c{i}", float(rng.random()), patient=f"p{i % 4}") for i in range(12)]
    assert summarise(rows[::-1]) == summarise(rows)


def test_the_table_by_hand():
    rows = [row("a", 0.5, "head", near=(4, 4.0, 2)), row("a", 1.0, "tail", near=(4, 4.0, 2))]
    lines = markdown(summarise(rows), ScoringProtocol(tolerance=1.5, band=3.0)).splitlines()
    assert lines[0].startswith(
        "| region | cases | patients | missed | invented | absent | Dice, % | IoU, % | HD95, mm"
    )
    assert "NSD at 1.5 mm, %" in lines[0] and "Dice within 3 mm of the boundary, %" in lines[0]
    assert lines[2].startswith("| **all** | 1 | 1 | 0 | 0 | 0 | 75.00 [75.00, 75.00] |")
    assert lines[3].startswith(
        "| head | 1 | 1 | 0 | 0 | 0 | 50.00 [50.00, 50.00] | 50.00 [50.00, 50.00] | 5.00 [5.00,"
    )
    assert lines[4].endswith("| 0.00 [0.00, 0.00] | 50.00 [50.00, 50.00] |")
    assert (
        "scores an overlap of 0 and a distance of 1 × the picture's diagonal; absent from both, 1 and 0 mm"
        in lines[-1]
    )


def test_nothing_to_summarise_is_an_error():
    with pytest.raises(ValueError, match="no rows to summarise"):
        summarise([])


def test_a_case_without_one_of_the_regions_is_an_error():
    with pytest.raises(ValueError, match="b: no row for the region tail; score every region of every case"):
        summarise([row("a", 1, "head"), row("a", 1, "tail"), row("b", 1, "head")])
