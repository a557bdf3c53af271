"""Segmentation metrics from integer counts: gIoU and cIoU by LISA's definitions, no-target accuracy, matching."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class MaskCounts:
    """One slot: pixels in both masks and pixels in either; a slot is a matched pair, a miss or a false alarm."""

    intersection: int
    union: int


def giou(counts: list[MaskCounts]) -> float:
    """Mean IoU over slots, 0..1; empty against empty is 1 (LISA `intersectionAndUnionGPU`, without its ε).

    Raises:
        ValueError: no slots.
    """
    _check(counts)
    return float(np.mean([c.intersection / c.union if c.union else 1.0 for c in counts]))


def ciou(counts: list[MaskCounts]) -> float:
    """Cumulative IoU, ΣI / ΣU, 0..1; 1 when every union is empty (LISA, without its ε).

    Raises:
        ValueError: no slots.
    """
    _check(counts)
    union = sum(c.union for c in counts)
    return sum(c.intersection for c in counts) / union if union else 1.0


def precision_at(counts: list[MaskCounts], least: float) -> float:
    """Share of slots whose IoU is at least `least`, 0..1 (P@0.5 … P@0.9 of referring expressions).

    Raises:
        ValueError: no slots.
    """
    _check(counts)
    return sum((c.intersection / c.union if c.union else 1.0) >= least for c in counts) / len(counts)


def match_counts(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> list[MaskCounts]:
    """Counts of one answer: Hungarian matching by IoU, then a slot for each miss and each false alarm.

    Ignored pixels are left out of everything. An answer without masks to a question without masks is one slot 0/0.

    Args:
        predicted: bool (P, H, W). truth: bool (T, H, W). valid: bool (H, W).
    Raises:
        ValueError: sizes differ.
    """
    if predicted.shape[1:] != valid.shape or truth.shape[1:] != valid.shape:
        raise ValueError(f"predicted {predicted.shape}, truth {truth.shape} and valid {valid.shape} differ in size")
    if len(predicted) == 0 and len(truth) == 0:
        return [MaskCounts(0, 0)]
    p, t = _packed(predicted, valid), _packed(truth, valid)
    intersection = np.stack([_ones(one & t) for one in p]) if len(p) else np.zeros((0, len(t)), np.int64)
    area_p, area_t = _ones(p), _ones(t)
    union = area_p[:, None] + area_t[None] - intersection
    iou = np.where(union > 0, intersection / np.maximum(union, 1), 1.0)
    rows, columns = linear_sum_assignment(-iou)
    slots = [MaskCounts(int(intersection[r, c]), int(union[r, c])) for r, c in zip(rows, columns, strict=True)]
    # A miss or a false alarm of no counted pixel is no slot: as 0/0 it would score 1 and could be had for nothing.
    slots += [MaskCounts(0, int(area_p[r])) for r in range(len(p)) if r not in rows and area_p[r] > 0]
    slots += [MaskCounts(0, int(area_t[c])) for c in range(len(t)) if c not in columns and area_t[c] > 0]
    return slots or [MaskCounts(0, 0)]


def _packed(masks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Bool masks (P, H, W) without ignored pixels, 64 pixels a word, (P, W): they are counted a word at a time."""
    bits = np.packbits((masks & valid).reshape(len(masks), valid.size), axis=1)
    return np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)


def _ones(words: np.ndarray) -> np.ndarray:
    """How many bits are set, over the last axis."""
    return np.bitwise_count(words).sum(-1, dtype=np.int64)


def bootstrap_interval(groups: list, statistic, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of `statistic(list of groups)` under resampling of groups (pictures)."""
    rng = np.random.default_rng(seed)
    values = [statistic([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(draws)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _check(counts: list[MaskCounts]) -> None:
    if not counts:
        raise ValueError("no answers to score; give at least one")
