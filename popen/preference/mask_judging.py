"""Judges of whole masks: K candidates of one picture, bool (K, C, *spatial), to K qualities, higher is better.

C are the declared regions or classes. Only `dice_with_truth` may see the truth; the others need no labels.
"""

import random

import torch

from popen.objectives.shapes import check_bool, check_same_shape


def dice_with_truth(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Dice of each candidate with the truth (MAPO's ranking; reconstruction), the mean over regions.

    D = 2 |A ∩ B| / (|A| + |B|), 1 where both are empty

    Args:
        masks: bool (K, C, *spatial). truth: bool (C, *spatial).
    Returns:
        float64 (K,) in 0..1.
    Raises:
        ValueError: shapes differ, or a mask is not bool.
    """
    truths = truth[None].expand_as(masks) if masks.shape[1:] == truth.shape else truth
    check_same_shape(masks=masks, truth=truths)
    check_bool(masks=masks, truth=truth)
    both = (masks & truths).flatten(2).sum(2).double()
    total = (masks.flatten(2).sum(2) + truths.flatten(2).sum(2)).double()
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0).mean(1)


def agreement(masks: torch.Tensor, consensus: torch.Tensor) -> torch.Tensor:
    """Dice of each candidate with what an ensemble agrees on, such as the mean over flips cut at one half.

    Args, Returns, Raises: as `dice_with_truth`, with the consensus in place of the truth.
    """
    return dice_with_truth(masks, consensus)


def certainty(probabilities: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Minus the mean entropy of a candidate's own probabilities where any candidate is on, in nats.

    Elsewhere all are sure of the background, which says nothing about a mask and would prefer small ones.

    Args:
        probabilities: float (K, C, *spatial) in 0..1. masks: bool, same shape.
    Returns:
        float64 (K,) in −ln 2..0; 0 where no candidate is on anywhere.
    Raises:
        ValueError: the shapes differ, or masks is not bool.
    """
    check_same_shape(probabilities=probabilities, masks=masks)
    check_bool(masks=masks)
    p = probabilities.double().clamp(1e-12, 1 - 1e-12)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    anywhere = masks.any(0, keepdim=True)
    return -(entropy * anywhere).flatten(1).sum(1) / anywhere.sum().clamp(min=1)


def flips(count: int, rate: float, seed: int) -> list[bool]:
    """Which of `count` judgements a judge gets the wrong way round, each with probability `rate`.

    Raises:
        ValueError: rate outside 0..1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate = {rate}: the share of flipped judgements lies in 0..1")
    draw = random.Random(seed)
    return [draw.random() < rate for _ in range(count)]
