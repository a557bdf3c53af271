"""MUSE: several targets per answer, matched, then scored as PixelLM's released script does and as it should.

The released script (`ar_validate` in PixelLM's `train_ds.py`) binarises the predictions that are matched, but passes
those that match nothing on as logits. Its histogram of two bins over 0..1 then counts, of such a prediction, only
pixels whose logit lies in 0.5..1, so that cIoU hardly charges what an answer invents; and it takes the number of slots
over all questions of an item, so that a surplus in one question pays for a lack in another. Numbers from that script
compare with `released_giou` and `released_ciou` only; `corrected_giou` and `corrected_ciou` do neither.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from eval.lisa_metrics import SMOOTH_MEAN, lisa_ciou, lisa_iou, mask_counts
from eval.metrics import MaskCounts
from popen.preference.sampling import item_seed

POINTS = 12_544  # as released
BAND = 0.5, 1.0  # the logits that the released histogram takes for foreground


@dataclass(frozen=True)
class MuseCounts:
    """One question: its matched pairs, the pixels of each target missed, and of each prediction that matches nothing.

    `surplus_band` are the pixels of those predictions that the released script sees; `surplus` all of them.
    """

    pairs: tuple[MaskCounts, ...] = ()
    missed: tuple[int, ...] = ()
    surplus: tuple[int, ...] = ()
    surplus_band: tuple[int, ...] = ()

    @property
    def predicted(self) -> int:
        """Masks in the answer."""
        return len(self.pairs) + len(self.surplus)

    @property
    def targets(self) -> int:
        """Masks in the truth."""
        return len(self.pairs) + len(self.missed)


def matching_points(question_id: str, seed: int = 0) -> torch.Tensor:
    """POINTS places (x, y) in 0..1, float32 (POINTS, 2): the same for a question in every run, drawn by its id.

    The released script draws them anew each time.
    """
    return torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(item_seed(seed, "muse", question_id)))


def matching_cost(logits_PHW: torch.Tensor, truth_THW: torch.Tensor, points_N2: torch.Tensor) -> torch.Tensor:
    """What it costs to match each prediction with each target: cross-entropy + Dice at the points, 1 : 1.

    C_pt = 1/N · Σ_i BCE(z_pi, y_ti) + 1 − (2 Σ_i σ(z_pi) y_ti + 1) / (Σ_i σ(z_pi) + Σ_i y_ti + 1)

    z and y are read off between pixels, bilinearly (PixelLM's `match_pred`).

    Args:
        logits_PHW: mask logits, float (P, H, W). truth_THW: bool (T, H, W). points_N2: (x, y) in 0..1, (N, 2).
    Returns:
        float32 (P, T).
    Raises:
        ValueError: the masks differ in size.
    """
    if logits_PHW.shape[1:] != truth_THW.shape[1:]:
        raise ValueError(f"logits {tuple(logits_PHW.shape)} and truth {tuple(truth_THW.shape)} differ in size")
    z, y = _at_points(logits_PHW.float(), points_N2), _at_points(truth_THW.float(), points_N2)
    entropy = (F.softplus(-z) @ y.T + F.softplus(z) @ (1 - y).T) / z.shape[1]
    p = z.sigmoid()
    dice = 1 - (2 * p @ y.T + 1) / (p.sum(1)[:, None] + y.sum(1)[None] + 1)
    return entropy + dice


def match(logits_PHW: torch.Tensor, truth_THW: torch.Tensor, points_N2: torch.Tensor) -> tuple[tuple[int, int], ...]:
    """The pairs (prediction, target) of least total cost, min(P, T) of them; arguments as `matching_cost`."""
    cost = matching_cost(logits_PHW.cpu(), truth_THW.cpu(), points_N2)
    return tuple((int(p), int(t)) for p, t in zip(*linear_sum_assignment(cost.numpy()), strict=True))


def muse_counts(
    logits_PHW: torch.Tensor, truth_THW: torch.Tensor, valid_HW: torch.Tensor, pairs: tuple[tuple[int, int], ...]
) -> MuseCounts:
    """Counts one answer; a pixel is in where its logit is above 0, and ignored pixels are left out.

    Args:
        logits_PHW: float (P, H, W). truth_THW: bool (T, H, W). valid_HW: bool (H, W). pairs: of `match`.
    Raises:
        ValueError: sizes differ.
    """
    if not logits_PHW.shape[1:] == truth_THW.shape[1:] == valid_HW.shape:
        shapes = [tuple(mask.shape) for mask in (logits_PHW, truth_THW, valid_HW)]
        raise ValueError(f"logits {shapes[0]}, truth {shapes[1]} and valid {shapes[2]} differ in size")
    logits, truth, valid = (mask.cpu().numpy() for mask in (logits_PHW.float(), truth_THW, valid_HW))
    invented = [logits[p][valid] for p in range(len(logits)) if p not in {p for p, _ in pairs}]
    return MuseCounts(
        pairs=tuple(mask_counts(logits[p] > 0, truth[t], valid) for p, t in pairs),
        missed=tuple(int((truth[t] & valid).sum()) for t in range(len(truth)) if t not in {t for _, t in pairs}),
        surplus=tuple(int((z > 0).sum()) for z in invented),
        surplus_band=tuple(int(((z >= BAND[0]) & (z <= BAND[1])).sum()) for z in invented),
    )


def released_giou(items: list[list[MuseCounts]]) -> float:
    """gIoU of the released script, 0..1: Σ IoU over all slots / (Σ_item M + 1e-5).

    M = max(Σ_q predicted_q, Σ_q targets_q) over the questions q of an item; IoU = I / (U + 1e-5) + [U = 0].

    Args:
        items: per item (a record of MUSE's file with its questions) the counts of each question.
    Raises:
        ValueError: no masks at all, neither predicted nor true.
    """
    slots = _released_slots(items)
    most = sum(max(sum(q.predicted for q in item), sum(q.targets for q in item)) for item in items)
    return sum(map(lisa_iou, slots)) / (most + SMOOTH_MEAN)


def released_ciou(items: list[list[MuseCounts]]) -> float:
    """cIoU of the released script, 0..1, over matched pairs, misses and what is left of inventions.

    Args, Raises: as `released_giou`.
    """
    return lisa_ciou(_released_slots(items))


def corrected_giou(questions: list[MuseCounts]) -> float:
    """Σ IoU of matched pairs / Σ_q max(predicted_q, targets_q), 0..1: a miss or an invention is a slot that scores 0.

    Raises:
        ValueError: no masks at all, neither predicted nor true.
    """
    slots = sum(max(q.predicted, q.targets) for q in questions)
    if not slots:
        raise ValueError("no masks to score; give at least one")
    pairs = [pair for q in questions for pair in q.pairs]
    return sum(pair.intersection / pair.union if pair.union else 1.0 for pair in pairs) / slots


def corrected_ciou(questions: list[MuseCounts]) -> float:
    """ΣI / ΣU, 0..1, with every pixel of what was missed or invented in U; 1 where every union is empty.

    Raises:
        ValueError: no masks at all, neither predicted nor true.
    """
    if not any(q.predicted or q.targets for q in questions):
        raise ValueError("no masks to score; give at least one")
    union = sum(sum(p.union for p in q.pairs) + sum(q.missed) + sum(q.surplus) for q in questions)
    return sum(p.intersection for q in questions for p in q.pairs) / union if union else 1.0


def _at_points(masks_MHW: torch.Tensor, points_N2: torch.Tensor) -> torch.Tensor:
    """(M, N) values at the points."""
    grid = (2 * points_N2 - 1).expand(len(masks_MHW), 1, -1, -1)
    return F.grid_sample(masks_MHW[:, None], grid, align_corners=False).flatten(1)


def _released_slots(items: list[list[MuseCounts]]) -> list[MaskCounts]:
    questions = [q for item in items for q in item]
    slots = [pair for q in questions for pair in q.pairs]
    slots += [MaskCounts(0, pixels) for q in questions for pixels in (*q.missed, *q.surplus_band)]
    if not slots:
        raise ValueError("no masks to score; give at least one")
    return slots
