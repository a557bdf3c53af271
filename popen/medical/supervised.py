"""Supervised losses of a segmenter: functions of `Labelled`, to hand to `MedicalTrainer`.

    partial(cross_entropy_dice, activation="sigmoid")
    partial(pareto_guided, activation="softmax", band=3.0, warmup=0.5)

Each gives named parts whose sum is the loss. Masks are independent regions (sigmoid) or one-hot classes (softmax).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from popen.objectives.pareto import common_descent_weight
from popen.objectives.soft_targets import (
    dice_semimetric_loss,
    soft_bce_loss,
    softmax_ce_loss,
    softmax_dice_semimetric_loss,
)
from popen.objectives.uncertainty import (
    boundary_mask,
    curriculum_weight,
    fuzzy_labels,
    geodesic_labels,
    intuitionistic_labels,
    region_losses,
    spatially_varying_labels,
)

Activation = Literal["sigmoid", "softmax"]
Parts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Labelled:
    """What a supervised loss sees of N pictures.

    `levels` are the logits (N, K, *spatial) of every level of deep supervision, the full resolution first; `masks`
    bool (N, K, *spatial); `distance` the signed distance to each mask's boundary in pixels, positive inside,
    and `geodesic` the membership of `popen.medical.boundary`, both float, shaped as the masks, or None where a loss
    does not ask for them; `progress` the share of the training that is done, 0..1. `valid` bool (N, 1, *spatial) are
    the pixels that count, all by default; what any other holds changes neither losses nor gradients. N may be 0: the
    parts are then 0.
    """

    levels: tuple[torch.Tensor, ...]
    masks: torch.Tensor
    distance: torch.Tensor | None
    geodesic: torch.Tensor | None
    progress: float
    valid: torch.Tensor | None = None

    def __post_init__(self):
        if self.valid is not None and any(own.shape[2:] != self.valid.shape[2:] for own in self.levels):
            raise ValueError("valid: pixels that do not count are known at the full resolution; give that level alone")

    def only(self, row: int) -> "Labelled":
        """One of the N pictures."""
        one = slice(row, row + 1)
        maps = (self.distance, self.geodesic, self.valid)
        distance, geodesic, valid = (None if own is None else own[one] for own in maps)
        levels = tuple(level[one] for level in self.levels)
        return Labelled(levels, self.masks[one], distance, geodesic, self.progress, valid)

    def counted(self, logits: torch.Tensor) -> torch.Tensor:
        """Which pixels of a level count, bool (N, 1, *its pixels)."""
        return torch.ones_like(logits[:, :1], dtype=torch.bool) if self.valid is None else self.valid


SupervisedLoss = Callable[[Labelled], Parts]  # named parts; their sum is the loss


def weighted(loss: SupervisedLoss, labelled: Labelled, weights: torch.Tensor) -> Parts:
    """Parts of a loss over N pictures that count differently: the mean of weight times the picture's own parts.

    Args:
        weights: (N,) >= 0; a picture of weight ½ pulls half as much, and none pulls more for it.
    Raises:
        ValueError: not one weight per picture.
    """
    if weights.shape != (len(labelled.masks),):
        raise ValueError(f"weights {tuple(weights.shape)} for {len(labelled.masks)} pictures; give each its own")
    if (weights == weights[0]).all():  # then one pass over all is the same
        return {name: weights[0] * part for name, part in loss(labelled).items()}
    found = [
        {name: weight * part for name, part in loss(labelled.only(i)).items()} for i, weight in enumerate(weights)
    ]
    return {name: torch.stack([parts[name] for parts in found]).mean() for name in found[0]}


def cross_entropy_dice(labelled: Labelled, activation: Activation) -> Parts:
    """Cross-entropy and Dice on hard masks, the usual baseline."""
    return _on_levels(labelled, labelled.masks.float(), None, activation)


def svls(labelled: Labelled, activation: Activation, sigma: float = 1.0) -> Parts:
    """The same against labels smoothed by their neighbourhood (SVLS)."""
    return _on_levels(labelled, spatially_varying_labels(labelled.masks, sigma, labelled.valid), None, activation)


def geols(labelled: Labelled, activation: Activation, alpha: float = 0.1) -> Parts:
    """The same against labels blended with the geodesic map (GeoLS)."""
    geodesic = _asked(labelled.geodesic, "geodesic")
    return _on_levels(labelled, geodesic_labels(labelled.masks, geodesic, alpha), None, activation)


def fuzzy(labelled: Labelled, activation: Activation, band: float) -> Parts:
    """The same against labels that are smooth within `band` pixels of the boundary."""
    return _on_levels(labelled, _membership(labelled, activation, band), None, activation)


def intuitionistic(labelled: Labelled, activation: Activation, band: float, hesitation: float = 0.5) -> Parts:
    """Fuzzy labels whose pixels weigh less where they hesitate, up to 1 − `hesitation` on the boundary itself."""
    distance = _asked(labelled.distance, "distance")
    unsure = intuitionistic_labels(distance, band, hesitation).hesitation
    return _on_levels(labelled, _membership(labelled, activation, band), 1 - unsure, activation)


def pareto_guided(
    labelled: Labelled, activation: Activation, band: float, warmup: float = 0.5, power: float = 1.0
) -> Parts:
    """Interior first, the boundary gradually, weighed so that neither gets worse (reconstruction).

    L = 2 [α L_I + (1 − α) w(t) L_B] + Dice,   α of `common_descent_weight` on the gradients at all levels' logits

    L_I, L_B and Dice are those of `interior_boundary`. Gradients at the logits bound those of the weights (Sener and
    Koltun 2018) and cost no second backward pass through the network; they conflict only where a coarse level's pixel
    belongs to both.
    """
    levels = labelled.levels
    interior, boundary, dice = interior_boundary(labelled, activation, band)
    weight = curriculum_weight(labelled.progress, warmup, power)
    share = common_descent_weight(_slope(interior, levels), _slope(weight * boundary, levels))
    return {"interior": 2 * share * interior, "boundary": 2 * (1 - share) * weight * boundary, "dice": dice}


def interior_boundary(
    labelled: Labelled, activation: Activation, band: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropies against fuzzy labels inside and within `band` pixels of the boundary, each the mean over its own
    pixels, 0 where there is none; and Dice over both. All three over the levels, weighed as those of other losses; a
    coarse pixel is in the band by the share of it that is."""
    targets = _membership(labelled, activation, band)
    edge, loss = boundary_mask(_asked(labelled.distance, "distance"), band), soft_bce_loss
    if activation == "softmax":
        edge, loss = edge.any(1, keepdim=True), softmax_ce_loss  # a pixel is in the band of any class as a whole
    interior, boundary, dice = (targets.new_zeros(()) for _ in range(3))
    for share, logits in _levels(labelled):
        own, near = (_resized(tensor, logits.shape[2:]) for tensor in (targets, edge.to(targets.dtype)))
        counted = labelled.counted(logits).expand_as(near)
        if activation == "softmax":
            near, counted = near[:, 0], counted[:, 0]
        apart, across = region_losses(loss, logits, own, near, counted)
        interior, boundary = interior + share * _mean(apart), boundary + share * _mean(across)
        dice = dice + share * _dice(logits, own, labelled.counted(logits), activation)
    return interior, boundary, dice


def _on_levels(
    labelled: Labelled, targets: torch.Tensor, weights: torch.Tensor | None, activation: Activation
) -> Parts:
    """Cross-entropy and Dice over the levels."""
    parts = {"ce": targets.new_zeros(()), "dice": targets.new_zeros(())}
    weights = torch.ones_like(targets) if weights is None else weights
    for share, logits in _levels(labelled):
        own, weigh = (_resized(tensor, logits.shape[2:]) for tensor in (targets, weights))
        counted = labelled.counted(logits)
        parts["ce"] = parts["ce"] + share * _cross_entropy(logits, own, weigh * counted, activation)
        parts["dice"] = parts["dice"] + share * _dice(logits, own, counted, activation)
    return parts


def _levels(labelled: Labelled) -> Iterator[tuple[float, torch.Tensor]]:
    """Logits of each level and its share of the loss, half as large as the one before it (nnU-Net); together 1."""
    shares = [0.5**level for level in range(len(labelled.levels))]
    for share, logits in zip(shares, labelled.levels, strict=True):
        yield share / sum(shares), logits


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, activation: Activation
) -> torch.Tensor:
    if activation == "sigmoid":
        return _mean(soft_bce_loss(logits, targets, weights))
    # a pixel has one weight: that of its most unsure class
    return _mean(softmax_ce_loss(logits, targets, weights.amin(1)))


def _dice(logits: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "sigmoid":
        return _mean(dice_semimetric_loss(logits, targets, counted.expand_as(targets)))
    return _mean(softmax_dice_semimetric_loss(logits, targets, counted[:, 0]))


def _mean(losses: torch.Tensor) -> torch.Tensor:
    """Over pictures and regions; 0 of none."""
    return losses.sum() / max(losses.numel(), 1)


def _membership(labelled: Labelled, activation: Activation, band: float) -> torch.Tensor:
    """Fuzzy labels; those of classes are scaled to sum to 1 in every pixel. One that is further than the band from all
    of them, as moved distances may be where classes meet between thick slices, is the nearest one's."""
    distance = _asked(labelled.distance, "distance")
    labels = fuzzy_labels(distance, band)
    if activation == "sigmoid":
        return labels
    nearest = torch.zeros_like(labels).scatter_(1, distance.argmax(1, keepdim=True), 1)
    labels = torch.where(labels.sum(1, keepdim=True) > 0, labels, nearest)
    return labels / labels.sum(1, keepdim=True)


def _resized(tensor: torch.Tensor, size: torch.Size) -> torch.Tensor:
    if tensor.shape[2:] == size:
        return tensor
    return F.adaptive_avg_pool2d(tensor, size) if len(size) == 2 else F.adaptive_avg_pool3d(tensor, size)


def _slope(loss: torch.Tensor, levels: tuple[torch.Tensor, ...]) -> torch.Tensor:
    if loss.requires_grad:
        slopes = torch.autograd.grad(loss, levels, retain_graph=True)
    else:
        slopes = tuple(torch.zeros_like(own) for own in levels)
    return torch.cat([own.flatten() for own in slopes])


def _asked(tensor: torch.Tensor | None, name: str) -> torch.Tensor:
    if tensor is None:
        raise ValueError(f"this loss needs {name}: build the examples with it")
    return tensor
