"""Objectives on pairs of masks by the names that recipes have for them, an LVLM's masks and a segmenter's alike."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from popen.objectives.preference import conservative_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.region_pairs import (
    Margin,
    RegionObjective,
    RegionPairs,
    class_mean,
    image_mean,
    power,
    region_dpo,
    region_mean,
    total,
)

MaskMargin = Literal["region_mean", "sum", "image_mean", "class_mean", "power"]
OneMaskMargin = Literal["region_mean", "sum", "image_mean", "power"]  # a mean over classes says nothing about one mask
LossOnMargin = Literal["sigmoid", "ipo", "cdpo", "rdpo"]


def mask_objective(
    margin: MaskMargin, loss: LossOnMargin, *, alpha: float, beta: float, label_smoothing: float
) -> RegionObjective:
    """`region_dpo` with the margin and the loss on it that are named.

    Args:
        alpha: α of power. beta: β of every loss. label_smoothing: ε of cdpo and rdpo.
    Raises:
        ValueError: a number that the margin or the loss asks for is out of range; the line begins with its name.
    """
    margins: dict[str, Margin] = {
        "region_mean": region_mean, "sum": total, "image_mean": image_mean, "class_mean": class_mean,
        "power": partial(power, alpha=alpha),
    }  # fmt: skip
    losses: dict[str, Callable[..., torch.Tensor]] = {
        "sigmoid": sigmoid_loss, "ipo": ipo_loss,
        "cdpo": partial(conservative_loss, label_smoothing=label_smoothing),
        "rdpo": partial(robust_loss, label_smoothing=label_smoothing),
    }  # fmt: skip
    objective = partial(region_dpo, margin=margins[margin], loss=partial(losses[loss], beta=beta))
    objective(_no_pairs())  # what is out of range is refused here and not at the first step
    return objective


def _no_pairs() -> RegionPairs:
    none = torch.zeros(0, 0)
    return RegionPairs(none, none, none, none.long(), none.sum(1), entries=1, pixels=1.0)
