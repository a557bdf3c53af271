"""True masks damaged on purpose: grown, shrunk, moved, with parts lost or added, at a wanted area and Dice.

A judge that learns from hypotheses alone may learn that large masks are good, or small ones. The best Dice that a mask
of e^g times the truth's area can have, 2 / (1 + e^|g|), is the same for g and −g: so to every mask there is a mirror
image, as much too small as it is too large and with the same Dice, and over both, area says nothing about Dice.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_bool, check_same_shape

MOST_GROWTH = math.log(4)  # either way; further off no judge is needed


def best_dice(growth: float) -> float:
    """The largest Dice of a mask of e^g times the truth's area, 2 / (1 + e^|g|) in 0..1."""
    return 2 / (1 + math.exp(abs(growth)))


def damage_order(depth: torch.Tensor, spacing: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    """How readily a damaged mask takes in each pixel: by depth, tilted to one side, with bumps, each by chance.

    Depth alone grows and shrinks a mask evenly, the tilt moves it, bumps take parts away and add others.

    Args:
        depth: `popen.medical.boundary.signed_distance` of the truth, float (*spatial), 2-D or 3-D; where it is
            infinite, in an empty or full picture, nothing is deeper than anything else. spacing: mm per axis.
    Returns:
        float (*spatial), the readiest highest.
    Raises:
        ValueError: depth has other axes than the spacing.
    """
    if depth.dim() != len(spacing):
        raise ValueError(f"depth {tuple(depth.shape)}, spacing {tuple(spacing)}: give a number for each axis")
    depth = depth.nan_to_num(0.0, 0.0, 0.0) if depth.isinf().any() else depth
    radius = depth.max().clamp(min=1e-6)
    tilt, bumps = (1.5 * torch.rand((), generator=generator) for _ in range(2))
    axes = [step * torch.arange(float(side)) for side, step in zip(depth.shape, spacing, strict=True)]
    direction = F.normalize(torch.randn(len(axes), generator=generator), dim=0)
    side = sum(part * axis for part, axis in zip(direction, torch.meshgrid(*axes, indexing="ij"), strict=True))
    coarse = torch.randn(1, 1, *(min(6, n) for n in depth.shape), generator=generator)
    fine = F.interpolate(coarse, depth.shape, mode="bilinear" if depth.dim() == 2 else "trilinear")[0, 0]
    return depth / radius + tilt * side / radius + bumps * fine


def damaged(truth: torch.Tensor, order: torch.Tensor, growth: float, dice: float) -> torch.Tensor:
    """A mask of a wanted area and Dice, as nearly as whole pixels and the picture's size allow (ours).

    a = e^g |T|,   o = D (a + |T|) / 2:   the o readiest pixels of T and the a − o readiest others

    Args:
        truth: T, bool (*spatial). order: float (*spatial), `damage_order`'s. growth: g, at most `MOST_GROWTH` either
            way. dice: D, at most `best_dice(growth)`.
    Returns:
        bool (*spatial); an empty truth stays as it is.
    Raises:
        ValueError: shapes differ, truth is not bool, or no mask has such a growth and Dice.
    """
    check_same_shape(truth=truth, order=order)
    check_bool(truth=truth)
    if not (abs(growth) <= MOST_GROWTH + 1e-9 and 0 <= dice <= best_dice(growth) + 1e-9):
        raise ValueError(
            f"growth {growth:.3f}, Dice {dice:.3f}: growth lies within ±{MOST_GROWTH:.3f} and Dice in "
            f"0..{best_dice(growth):.3f}"
        )
    size, whole = int(truth.sum()), truth.numel()
    if not size:
        return truth.clone()
    area = min(max(round(size * math.exp(growth)), 1), whole)
    inside = min(max(round(dice * (area + size) / 2), area - (whole - size), 0), area, size)
    found = torch.zeros(whole, dtype=torch.bool)
    for own, count in ((truth.flatten(), inside), (~truth.flatten(), area - inside)):
        ready = order.flatten().masked_fill(~own, -torch.inf)
        found[ready.topk(count).indices] = True
    return found.view_as(truth)


def mirrored(mask: torch.Tensor, truth: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A mask as much too small as this one is too large, or the other way round, with the same Dice.

    Args, Raises: bool (*spatial) both; as `damaged`.
    """
    check_same_shape(mask=mask, truth=truth)
    check_bool(mask=mask)
    area, size = int(mask.sum()), int(truth.sum())
    if not size:
        return mask.clone()
    growth = math.log(max(area, 1) / size)
    growth = -min(max(growth, -MOST_GROWTH), MOST_GROWTH)
    dice = 2 * int((mask & truth).sum()) / (area + size)
    return damaged(truth, order, growth, min(dice, best_dice(growth)))


def drawn_damage(generator: torch.Generator) -> tuple[float, float]:
    """Growth and Dice by chance: small growths are frequent, and Dice lies in 0.4..1 of the best there is."""
    first, second, share = torch.rand(3, generator=generator).tolist()
    growth = math.log(2) * (first - second)
    return growth, best_dice(growth) * (0.4 + 0.6 * share)


def one_hot(claims: torch.Tensor, first: Sequence[int]) -> torch.Tensor:
    """Classes, bool (K, *spatial), of damaged masks that overlap: those in `first` order keep what others claim, too,
    and channel 0, the background, is what nobody claims."""
    found, free = torch.zeros_like(claims), torch.ones_like(claims[0])
    for channel in first:
        found[channel] = claims[channel] & free
        free = free & ~claims[channel]
    found[0] = free
    return found
