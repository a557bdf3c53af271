"""gIoU and cIoU exactly as LISA computes them: what published ReasonSeg and RefCOCO rows are measured in.

Source: LISA's `train_ds.py` and `utils/utils.py`. `eval.metrics` has the same numbers without the ε.
"""

import numpy as np

from eval.metrics import MaskCounts

SMOOTH_IOU, SMOOTH_MEAN, SMOOTH_CIOU = 1e-5, 1e-5, 1e-10


def mask_counts(predicted_HW: np.ndarray, truth_HW: np.ndarray, valid_HW: np.ndarray) -> MaskCounts:
    """Pixels in both masks and in either, ignored ones (LISA's 255) dropped: class 1 of `intersectionAndUnionGPU`.

    Args:
        predicted_HW, truth_HW: bool (H, W). valid_HW: bool (H, W), False on ignored pixels.
    Raises:
        ValueError: the three shapes differ.
    """
    if not predicted_HW.shape == truth_HW.shape == valid_HW.shape:
        raise ValueError(
            f"predicted {predicted_HW.shape}, truth {truth_HW.shape} and valid {valid_HW.shape} differ in size"
        )
    both = np.count_nonzero(predicted_HW & truth_HW & valid_HW)
    return MaskCounts(int(both), int(np.count_nonzero((predicted_HW | truth_HW) & valid_HW)))


def lisa_iou(counts: MaskCounts) -> float:
    """I / (U + 1e-5), and 1 more where U = 0: empty against empty is right."""
    return counts.intersection / (counts.union + SMOOTH_IOU) + (counts.union == 0)


def lisa_giou(counts: list[MaskCounts]) -> float:
    """Mean IoU over masks, 0..1, with LISA's ε.

    gIoU = 1/(n + 1e-5) · Σ_j (I_j / (U_j + 1e-5) + [U_j = 0])

    Args:
        counts: one per mask.
    Raises:
        ValueError: no masks.
    """
    _check(counts)
    return sum(map(lisa_iou, counts)) / (len(counts) + SMOOTH_MEAN)


def lisa_ciou(counts: list[MaskCounts]) -> float:
    """Cumulative IoU, Σ_j I_j / (Σ_j U_j + 1e-10), 0..1; 0 where every union is empty; arguments as `lisa_giou`."""
    _check(counts)
    return sum(c.intersection for c in counts) / (sum(c.union for c in counts) + SMOOTH_CIOU)


def _check(counts: list[MaskCounts]) -> None:
    if not counts:
        raise ValueError("no masks to score; give at least one")
