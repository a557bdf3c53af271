"""What a judge is worth, found on labelled pictures before anything is trained on its word.

Pair accuracy is the wrong measure alone: a judge that prefers large masks can order 82 % of the pairs rightly and be
right on only half of the pixels that a preference moves.
"""

from dataclasses import dataclass

import torch

from popen.objectives.shapes import check_bool, check_same_shape
from popen.preference.mask_judging import dice_with_truth


@dataclass(frozen=True)
class JudgeReport:
    """Over pairs with known truth: shares in 0..1, and the mean log ratio of the winners' area to the losers'.

    `correct_inside` is the share of pixels in R, where the masks of a pair differ, on which the winner is right, the
    mean over pairs. `area_bias` is the mean of ln |winner| − ln |loser| minus the same of the truly better mask.
    """

    pairs: int
    pair_accuracy: float
    correct_inside: float
    area_bias: float


def log_growth(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """ln |winner| − ln |loser| of N pairs, the area over all channels, at least one pixel.

    Args:
        chosen, rejected: bool (N, C, *spatial). With one-hot masks leave the background out: all areas would be alike.
    Returns:
        float64 (N,).
    Raises:
        ValueError: shapes differ, or a mask is not bool.
    """
    check_same_shape(chosen=chosen, rejected=rejected)
    check_bool(chosen=chosen, rejected=rejected)
    won, lost = (side.flatten(1).sum(1).double().clamp(min=1).log() for side in (chosen, rejected))
    return won - lost


def right_inside(chosen: torch.Tensor, rejected: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Share of the pixels in R, where the masks of a pair differ, on which the winner is right.

    Args:
        chosen, rejected, truth: bool (N, C, *spatial).
    Returns:
        float64 (N,) in 0..1; ½ where the masks do not differ.
    Raises:
        ValueError: shapes differ, or a mask is not bool.
    """
    check_same_shape(chosen=chosen, rejected=rejected, truth=truth)
    check_bool(chosen=chosen, rejected=rejected, truth=truth)
    differ = (chosen != rejected).flatten(1)
    right = ((chosen == truth).flatten(1) & differ).sum(1).double()
    count = differ.sum(1)
    return torch.where(count > 0, right / count.clamp(min=1), 0.5)


def judge_report(chosen: torch.Tensor, rejected: torch.Tensor, truth: torch.Tensor) -> JudgeReport:
    """The report on N pairs that a judge ordered (ours).

    Args:
        chosen, rejected, truth: bool (N, C, *spatial), each picture's own truth; as `log_growth` takes them.
    Raises:
        ValueError: shapes differ, a mask is not bool, or there is no pair whose masks differ.
    """
    check_same_shape(chosen=chosen, rejected=rejected, truth=truth)
    check_bool(chosen=chosen, rejected=rejected, truth=truth)
    told = (chosen != rejected).flatten(1).any(1)
    if not told.any():
        raise ValueError(f"{len(chosen)} pairs, in none of which the masks differ; there is nothing to judge")
    chosen, rejected, truth = (tensor[told] for tensor in (chosen, rejected, truth))
    sides = torch.stack([chosen, rejected], 1)
    dice = torch.stack([dice_with_truth(pair, own) for pair, own in zip(sides, truth, strict=True)])
    right, growth = right_inside(chosen, rejected, truth), log_growth(chosen, rejected)
    better = torch.sign(dice[:, 0] - dice[:, 1])
    accuracy = torch.where(better == 0, 0.5, (better > 0).double())
    return JudgeReport(
        len(chosen), float(accuracy.mean()), float(right.mean()), float((growth - better * growth).mean())
    )


def why_unfit(report: JudgeReport, least_correct: float = 0.6, most_bias: float = 0.1) -> str | None:
    """Why a judge should not be trained on, in one line, or None (thresholds are ours, from the noise study)."""
    faults = []
    if report.correct_inside < least_correct:
        faults.append(
            f"its winners are right on {report.correct_inside:.0%} of the pixels that a preference moves (least "
            f"{least_correct:.0%})"
        )
    if abs(report.area_bias) > most_bias:
        kind = "large" if report.area_bias > 0 else "small"
        faults.append(f"it prefers {kind} masks by {abs(report.area_bias):.2f} in log area (most {most_bias:.2f})")
    if not faults:
        return None
    return f"the judge is unfit on {report.pairs} labelled pairs: " + ", and ".join(faults)
