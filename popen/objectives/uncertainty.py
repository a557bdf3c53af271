"""Labels that admit doubt near a boundary, and a curriculum that starts away from it.

Distances are signed, in pixels or mm, positive inside (`popen.medical.boundary.signed_distance`), ±inf where a mask is
full or empty. What Pareto-guided optimisation (Zhang et al. 2026) describes in words is reconstructed here: its
equations are unknown. Two published label smoothings stand beside it as controls. The Pareto step is in
`popen.objectives.pareto`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_bool, check_same_shape, full_precision

SoftLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # logits, targets, weights -> losses


def fuzzy_labels(distance: torch.Tensor, band: float) -> torch.Tensor:
    """Membership of each pixel: hard away from the boundary, a sine ramp across it (reconstruction).

    μ_i = 1[d_i > 0] where |d_i| > δ,   ½ (1 + sin(π d_i / 2δ)) where |d_i| <= δ

    The ramp meets 0 and 1 at the band's edges with slope 0; a sigmoid would jump there.

    Args:
        distance: d in pixels or mm, float, any shape.
        band: δ > 0 in the same unit, half the width of the band.
    Returns:
        μ in 0..1, shaped as the distance.
    Raises:
        ValueError: the band is not a positive number.
    """
    _check_positive(band=band)
    inside = (full_precision(distance) / band).clamp(-1, 1)  # 1 and −1 from δ on, also at ±inf
    return 0.5 * (1 + torch.sin(0.5 * math.pi * inside))


@dataclass(frozen=True)
class IntuitionisticLabels:
    """Membership μ′, non-membership ν and hesitation h of each pixel, all in 0..1; they sum to 1."""

    membership: torch.Tensor
    non_membership: torch.Tensor
    hesitation: torch.Tensor


def intuitionistic_labels(distance: torch.Tensor, band: float, most: float) -> IntuitionisticLabels:
    """Fuzzy labels that also say how much they know (intuitionistic fuzzy sets, Atanassov 1986; reconstruction).

    μ′_i = μ_i (1 − h_i),   ν_i = (1 − μ_i)(1 − h_i),   h_i = h_max (1 − |d_i|/δ)₊

    Cross-entropy against (μ′, ν) is cross-entropy against μ with weight 1 − h: hesitation is a pixel weight.

    Args:
        distance, band: as `fuzzy_labels`.
        most: h_max in 0..1, the hesitation on the boundary itself.
    Raises:
        ValueError: the band is not a positive number, or most is out of range.
    """
    if not 0 <= most <= 1:
        raise ValueError(f"most must be in 0..1, got {most}")
    membership = fuzzy_labels(distance, band)
    hesitation = most * (1 - full_precision(distance).abs() / band).clamp(min=0)
    known = 1 - hesitation
    return IntuitionisticLabels(membership * known, (1 - membership) * known, hesitation)


def boundary_mask(distance: torch.Tensor, band: float) -> torch.Tensor:
    """The uncertain band B = {i : |d_i| <= δ}; its complement is the certain interior, of object and background.

    Args, Raises: as `fuzzy_labels`.
    Returns:
        bool, shaped as the distance.
    """
    _check_positive(band=band)
    return distance.abs() <= band


def curriculum_weight(step: float, warmup: float, power: float) -> float:
    """Weight of the boundary's loss: certain regions first, uncertain ones gradually (reconstruction).

    L = L_I + w(t) L_B,   w(t) = min(1, (t/T)^p)

    Args:
        step: t >= 0, steps or epochs done. warmup: T > 0 in the same unit. power: p > 0; 1 is linear.
    Returns:
        w in 0..1; 1 from T on.
    Raises:
        ValueError: step is negative, or warmup or power is not a positive number.
    """
    if not step >= 0:
        raise ValueError(f"step must be a number >= 0, got {step}")
    _check_positive(warmup=warmup, power=power)
    return min(1.0, step / warmup) ** power


def region_losses(
    loss: SoftLoss, logits: torch.Tensor, targets: torch.Tensor, boundary: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_I and L_B: a loss of `popen.objectives.soft_targets` on the interior and on the boundary, each a mean over its
    own pixels, so that the few of the boundary are not drowned (reconstruction).

    Args:
        loss: (logits, targets, weights) -> losses.
        logits, targets: as the loss takes them.
        boundary: shaped as the loss's weights, bool, or float in 0..1 where pixels are coarse: the share of each that
            lies on the boundary. It counts there by that share, and inside by the rest.
        valid: bool, same shape, True on the pixels that count.
    Returns:
        Losses of interior and boundary, each as the loss returns them; 0 where that region has no valid pixel.
    Raises:
        ValueError: boundary and valid differ in shape, boundary is neither bool nor float, or valid is not bool; and
            whatever the loss refuses.
    """
    check_same_shape(boundary=boundary, valid=valid)
    check_bool(valid=valid)
    if boundary.dtype != torch.bool and not boundary.is_floating_point():
        raise ValueError(f"boundary must be bool or float, got {boundary.dtype}")
    share = full_precision(boundary)
    return loss(logits, targets, valid * (1 - share)), loss(logits, targets, valid * share)


def spatially_varying_labels(
    masks: torch.Tensor, sigma: float = 1.0, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Labels smoothed by their 3ⁿ neighbourhood (SVLS, Islam and Glocker 2021; kernel as released).

    ỹ_i = ½ y_i + ½ Σ_{j∈N(i)} g_ij y_j / Σ_{j∈N(i)} g_ij,   g_ij = exp(−|i − j|² / 2σ²), in pixels

    The released kernel is no plain Gaussian: its centre weighs as much as all neighbours together, so a pixel's
    own class keeps at least ½. Replicate padding; one-hot masks stay distributions, a pixel among its like stays hard.

    Args:
        masks: bool (B, K, *spatial), 2-D or 3-D.
        sigma: σ > 0 in pixels.
        valid: bool (B, 1, *spatial), the pixels that count. Others, and those beyond the picture's edge, are then no
            neighbours of any, so that a picture and the same one padded have the same labels.
    Returns:
        ỹ in 0..1, float32 (B, K, *spatial); without a neighbour that counts a pixel's own.
    Raises:
        ValueError: masks are not bool or not 2-D or 3-D, valid is not theirs without K, or sigma is not a positive
            number.
    """
    check_bool(masks=masks, **({} if valid is None else {"valid": valid}))
    axes = masks.dim() - 2
    if axes not in (2, 3):
        raise ValueError(f"masks must be (B, K, H, W) or (B, K, D, H, W), got {tuple(masks.shape)}")
    _check_positive(sigma=sigma)
    labels = masks.to(torch.float32)
    if labels.numel() == 0:
        return labels
    if valid is None:
        near, total = _neighbours(F.pad(labels, (1, 1) * axes, mode="replicate"), sigma)
        return labels / 2 + near / (2 * total)
    if valid.shape != masks[:, :1].shape:
        raise ValueError(f"valid must be (B, 1, *spatial) for masks {tuple(masks.shape)}, got {tuple(valid.shape)}")
    seen = valid.to(torch.float32)
    near, _ = _neighbours(F.pad(labels * seen, (1, 1) * axes), sigma)
    counted, _ = _neighbours(F.pad(seen, (1, 1) * axes), sigma)
    return labels / 2 + torch.where(counted > 0, near / torch.where(counted > 0, counted, 1), labels) / 2


def geodesic_labels(masks: torch.Tensor, geodesic: torch.Tensor, alpha: float) -> torch.Tensor:
    """Labels blended with how near each pixel is to its region along the picture (GeoLS, MIDL 2023).

    ỹ_i = (1 − α) y_i + α g_i

    With a constant map 1/K this is uniform label smoothing.

    Args:
        masks: bool (B, K, *spatial).
        geodesic: g in 0..1, float (B, K, *spatial), see `popen.medical.boundary`; classes need
            not sum to 1.
        alpha: α in 0..1.
    Returns:
        ỹ in 0..1, (B, K, *spatial).
    Raises:
        ValueError: the shapes differ, masks are not bool, or alpha is out of range.
    """
    check_same_shape(masks=masks, geodesic=geodesic)
    check_bool(masks=masks)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    return (1 - alpha) * full_precision(masks) + alpha * full_precision(geodesic)


def _neighbours(padded: torch.Tensor, sigma: float) -> tuple[torch.Tensor, float]:
    """Σ_{j∈N(i)} g_ij y_j of maps that are padded by one pixel on each side, and Σ g_ij."""
    axes = padded.dim() - 2
    size = [length - 2 for length in padded.shape[2:]]
    near, total = padded.new_zeros(*padded.shape[:2], *size), 0.0
    for offset in itertools.product((0, 1, 2), repeat=axes):  # and not a convolution, which autocast would round
        squared = sum((start - 1) ** 2 for start in offset)
        if squared:
            weight = math.exp(-(squared - 1) / (2 * sigma**2))  # a side weighs 1, so that a small σ cannot make all 0
            shifted = padded
            for axis, start in enumerate(offset, 2):
                shifted = shifted.narrow(axis, start, size[axis - 2])
            near += weight * shifted
            total += weight
    return near, total


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {number}")
