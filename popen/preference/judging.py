"""Judges: the quality of each candidate, and whom a judge prefers."""

import random
from collections import Counter

import torch


def iou_with_truth(masks_KHW: torch.Tensor, truth_HW: torch.Tensor, valid_HW: torch.Tensor) -> torch.Tensor:
    """IoU of K candidate masks with the truth over valid pixels, (K,) in 0..1; 1 where both are empty."""
    truth = truth_HW & valid_HW
    candidates = masks_KHW & valid_HW
    intersection = (candidates & truth).flatten(1).sum(1).double()
    union = (candidates | truth).flatten(1).sum(1).double()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def word_agreement(phrases: tuple[str, ...], true_phrases: tuple[str, ...]) -> float:
    """Share of phrases that are the truth's, of the longer list, 0..1; 1 where both name nothing (ours)."""
    said, true = (Counter(phrase.lower() for phrase in own) for own in (phrases, true_phrases))
    longer = max(said.total(), true.total())
    return (said & true).total() / longer if longer else 1.0


def judged_best(qualities: list[float], flips: float, seed: int) -> int:
    """The candidate that a judge prefers: the best, the first of equal ones; with probability `flips` any other.

    Raises:
        ValueError: no candidates, or flips outside 0..1.
    """
    if not qualities or not 0 <= flips <= 1:
        raise ValueError(f"{len(qualities)} candidates, flips = {flips}: give at least one, and a share in 0..1")
    best = max(range(len(qualities)), key=lambda i: (qualities[i], -i))
    draw = random.Random(seed)
    others = [i for i in range(len(qualities)) if i != best]
    return draw.choice(others) if others and draw.random() < flips else best
