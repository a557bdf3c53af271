"""Metrics of generalised referring expressions, of none, one or several things, as GSVA scores gRefCOCO."""

from dataclasses import dataclass

import numpy as np

from eval.lisa_metrics import mask_counts
from eval.metrics import MaskCounts, ciou, giou


@dataclass(frozen=True)
class Referral:
    """One expression: whether nothing fits it, whether the answer says so, and pixels in both masks and in either."""

    no_target: bool
    denied: bool
    intersection: int
    union: int


def referral(masks_PHW: np.ndarray, truth_THW: np.ndarray, valid_HW: np.ndarray) -> Referral:
    """Counts of one answer; its masks together are held against the true ones together.

    An answer without masks denies that there is anything: GSVA's [REJ].

    Args:
        masks_PHW: bool (P, H, W). truth_THW: bool (T, H, W), T = 0 where nothing fits. valid_HW: bool (H, W).
    Raises:
        ValueError: sizes differ.
    """
    counts = mask_counts(masks_PHW.any(0), truth_THW.any(0), valid_HW)
    return Referral(len(truth_THW) == 0, len(masks_PHW) == 0, counts.intersection, counts.union)


def grefcoco_giou(referrals: list[Referral]) -> float:
    """Mean IoU over expressions, 0..1; where nothing fits, 1 for an empty prediction and 0 for any other.

    Raises:
        ValueError: no expressions.
    """
    return giou(_slots(referrals))


def grefcoco_ciou(referrals: list[Referral]) -> float:
    """ΣI / ΣU, 0..1; what an answer shows where nothing fits counts in U. 1 where every union is empty.

    Raises:
        ValueError: no expressions.
    """
    return ciou(_slots(referrals))


def n_acc(referrals: list[Referral]) -> float | None:
    """TP / (TP + FN): the share denied of the expressions that nothing fits; None without such expressions."""
    return _share([r.denied for r in referrals if r.no_target])


def t_acc(referrals: list[Referral]) -> float | None:
    """TN / (TN + FP): the share not denied of the expressions that something fits; None without such expressions."""
    return _share([not r.denied for r in referrals if not r.no_target])


def _share(right: list[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _slots(referrals: list[Referral]) -> list[MaskCounts]:
    return [MaskCounts(r.intersection, r.union) for r in referrals]
