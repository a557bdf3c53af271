"""Objectives on pairs of masks, 2-D or 3-D: which margin on the region R, and which loss on the margin.

partial(region_dpo, margin=region_mean, loss=partial(sigmoid_loss, beta=1.0))     # RN-DPO
partial(region_dpo, margin=total, loss=partial(sigmoid_loss, beta=0.1))           # DPO on masks
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from popen.objectives.pairs import MarginLoss, PairLosses, SegPairs
from popen.objectives.regions import (
    region_margin,
    region_margin_class_mean,
    region_margin_image_mean,
    region_margin_power,
    region_margin_sum,
)


@dataclass(frozen=True)
class RegionPairs:
    """N pairs of masks on the entries of `popen.objectives.regions.Regions`.

    `logits`, `ref_logits`, `sign`, `classes` (N, R), padded with sign 0; `entries` of one disagreement, 1 or 2;
    `pixels` is the number of the policy's variables in a picture, or (N,) of pictures of several sizes; `gap` (N,) the
    judge's difference in quality.
    """

    logits: torch.Tensor
    ref_logits: torch.Tensor
    sign: torch.Tensor
    classes: torch.Tensor
    gap: torch.Tensor
    entries: int
    pixels: torch.Tensor | float


Margin = Callable[[RegionPairs], torch.Tensor]
RegionObjective = Callable[[RegionPairs], PairLosses]


def total(pairs: RegionPairs) -> torch.Tensor:
    """`region_margin_sum`, (N,)."""
    return region_margin_sum(pairs.logits, pairs.ref_logits, pairs.sign)


def image_mean(pairs: RegionPairs) -> torch.Tensor:
    """`region_margin_image_mean`, (N,)."""
    return region_margin_image_mean(pairs.logits, pairs.ref_logits, pairs.sign, pairs.pixels)


def region_mean(pairs: RegionPairs) -> torch.Tensor:
    """`region_margin`, (N,)."""
    return region_margin(pairs.logits, pairs.ref_logits, pairs.sign, pairs.entries)


def class_mean(pairs: RegionPairs) -> torch.Tensor:
    """`region_margin_class_mean`, (N,)."""
    return region_margin_class_mean(pairs.logits, pairs.ref_logits, pairs.sign, pairs.classes, pairs.entries)


def power(pairs: RegionPairs, alpha: float) -> torch.Tensor:
    """`region_margin_power`, (N,)."""
    return region_margin_power(pairs.logits, pairs.ref_logits, pairs.sign, alpha, pairs.entries)


def region_dpo(pairs: RegionPairs, margin: Margin, loss: MarginLoss) -> PairLosses:
    """A loss on a margin; half of the margin is each side's reward."""
    h = margin(pairs)
    return PairLosses(loss(h), h / 2, -h / 2)


def seg_region_dpo(pairs: SegPairs, objective: RegionObjective) -> PairLosses:
    """L_s in mask space with any margin on R: each target is one independent region (sigmoid).

    With `region_dpo` on `region_mean` it is `seg_mask_dpo`.
    """
    classes = torch.zeros_like(pairs.signs, dtype=torch.long)
    return objective(
        RegionPairs(pairs.logits, pairs.ref_logits, pairs.signs, classes, pairs.gap, entries=1, pixels=pairs.pixels)
    )
