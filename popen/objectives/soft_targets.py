"""Mask losses that are right for soft labels, with a weight per pixel.

Sigmoid logits (B, K, *spatial) carry K independent regions, softmax logits K classes of which every pixel has one; 2-D
and 3-D alike. Weights are bool, or float >= 0: a valid mask, an interior, one minus a doubt. Pixels of weight 0 change
neither losses nor gradients, whatever logits and labels hold there; where all weights are 0 a loss is 0.

For hard labels and (T, H, W) masks see `popen.objectives.masks`, whose ordinary Dice must not see soft ones: at a
label of ½ it is smallest at p = 1.
"""

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_same_shape, full_precision


def soft_bce_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy with soft labels, the weighted mean over each region's pixels.

    ℓ_bk = −1/Σ_i w_i · Σ_i w_i [y_i log σ(z_i) + (1 − y_i) log σ(−z_i)]

    Smallest at σ(z) = y, where the entropy of the label is left.

    Args:
        logits: float (B, K, *spatial).
        targets: labels y in 0..1, float or bool (B, K, *spatial).
        weights: w >= 0, float or bool (B, K, *spatial).
    Returns:
        (B, K) losses >= 0 in nats.
    Raises:
        ValueError: the three shapes differ, or have no axes for K and pixels.
    """
    logits, targets, weights = _cleared(logits, targets, weights)
    losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return _weighted_mean(losses.flatten(2), weights.flatten(2))


def dice_semimetric_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Dice loss of each region that is 0 at p = y also for soft labels (DML₁, Wang et al. 2023).

    ℓ_bk = Σ_i w_i |p_i − y_i| / (Σ_i w_i p_i + Σ_i w_i y_i + 1),   p = σ(z)

    On hard labels |p − y| = p + y − 2py, and this is `popen.objectives.masks.dice_loss`, whose + 1 it keeps.

    Args, Raises: as `soft_bce_loss`.
    Returns:
        (B, K) losses in 0..1.
    """
    logits, targets, weights = _cleared(logits, targets, weights)
    return _semimetric(logits.sigmoid(), targets, weights)


def softmax_ce_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over K classes with soft labels, the weighted mean over pixels.

    ℓ_b = −1/Σ_i w_i · Σ_i w_i Σ_k y_ki log softmax_k(z_i)

    Args:
        logits: float (B, K, *spatial).
        targets: labels y >= 0, float or bool (B, K, *spatial); a distribution over K unless a map says otherwise.
        weights: w >= 0, float or bool (B, *spatial).
    Returns:
        (B,) losses >= 0 in nats.
    Raises:
        ValueError: logits and targets differ in shape, weights are not theirs without K, or there are no axes for K
            and pixels.
    """
    logits, targets, weights = _cleared_pixels(logits, targets, weights)
    losses = -(targets * logits.log_softmax(1)).sum(1)
    return _weighted_mean(losses.flatten(1), weights[:, 0].flatten(1))


def softmax_dice_semimetric_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`dice_semimetric_loss` of each class, p = softmax(z).

    Args, Raises: as `softmax_ce_loss`.
    Returns:
        (B, K) losses in 0..1, the background's among them.
    """
    logits, targets, weights = _cleared_pixels(logits, targets, weights)
    return _semimetric(logits.softmax(1), targets, weights)


def _semimetric(probability: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    apart = (weights * (probability - targets).abs()).flatten(2).sum(2)
    mass = (weights * (probability + targets)).flatten(2).sum(2)
    return apart / (mass + 1)


def _weighted_mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = weights.sum(-1)  # may lie below 1 when the weights do, so only an empty region is guarded
    return (weights * losses).sum(-1) / torch.where(total > 0, total, 1)


def _cleared(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All in full precision, logits and targets 0 where the weight is."""
    check_same_shape(logits=logits, targets=targets, weights=weights)
    _check_axes(logits)
    return _fill(logits, targets, weights)


def _cleared_pixels(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_cleared` for weights without K; they return as (B, 1, *spatial)."""
    check_same_shape(logits=logits, targets=targets)
    _check_axes(logits)
    if weights.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"weights must be (B, *spatial) for logits {tuple(logits.shape)} (B, K, *spatial), "
            f"got {tuple(weights.shape)}"
        )
    return _fill(logits, targets, weights[:, None])


def _fill(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # filled, not multiplied: 0 times the slope at a logit of −inf would not be a number
    out = weights == 0
    return (
        full_precision(logits).masked_fill(out, 0),
        full_precision(targets).masked_fill(out, 0),
        full_precision(weights),
    )


def _check_axes(logits: torch.Tensor) -> None:
    if logits.dim() < 3:
        raise ValueError(f"logits must be (B, K, *spatial), got {tuple(logits.shape)}")
