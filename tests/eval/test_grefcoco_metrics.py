"""gRefCOCO's numbers by hand, on strips of 16 pixels."""

import numpy as np
import pytest

from eval.grefcoco_metrics import Referral, grefcoco_ciou, grefcoco_giou, n_acc, referral, t_acc

EVERYWHERE = np.ones((1, 16), bool)


def strips(*spans):
    masks = np.zeros((len(spans), 1, 16), bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


FOUND = referral(strips((0, 4), (8, 10)), strips((0, 6), (8, 12)), EVERYWHERE)  # 6 of 10
LOST = referral(strips(), strips((0, 5)), EVERYWHERE)
DENIED = referral(strips(), strips(), EVERYWHERE)
INVENTED = referral(strips((0, 5)), strips(), EVERYWHERE)
EMPTY = referral(strips((0, 0)), strips(), EVERYWHERE)


def test_masks_are_held_together_against_the_truth():
    assert Referral(False, False, 6, 10) == FOUND
    assert Referral(False, True, 0, 5) == LOST
    assert Referral(True, True, 0, 0) == DENIED
    assert Referral(True, False, 0, 5) == INVENTED


def test_by_hand():
    """gIoU (0.6 + 0 + 1 + 0) / 4; cIoU 6 / (10 + 5 + 0 + 5): what was invented counts in the union."""
    every = [FOUND, LOST, DENIED, INVENTED]
    assert grefcoco_giou(every) == pytest.approx(0.4)
    assert grefcoco_ciou(every) == pytest.approx(0.3)
    assert n_acc(every) == t_acc(every) == 0.5


def test_an_empty_mask_is_an_empty_prediction_but_no_denial():
    assert grefcoco_giou([EMPTY]) == 1 and grefcoco_ciou([EMPTY]) == 1
    assert n_acc([EMPTY]) == 0


def test_accuracies_of_nothing_are_none():
    assert n_acc([FOUND]) is None and t_acc([DENIED]) is None
    assert t_acc([FOUND, LOST, LOST]) == pytest.approx(1 / 3)


def test_ignored_pixels_do_not_count():
    valid = EVERYWHERE.copy()
    valid[0, 2:8] = False
    assert referral(strips((0, 4), (8, 10)), strips((0, 6), (8, 12)), valid) == Referral(False, False, 4, 6)


@pytest.mark.parametrize("metric", [grefcoco_giou, grefcoco_ciou])
def test_no_expressions_is_an_error(metric):
    with pytest.raises(ValueError, match="at least one"):
        metric([])


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="differ in size"):
        referral(strips((0, 4)), np.zeros((1, 2, 8), bool), EVERYWHERE)
