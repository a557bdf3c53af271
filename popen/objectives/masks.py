"""Supervised mask losses (T, H, W) -> (T,), one value per target, and the counts behind IoU.

T counts targets over the whole batch and may be 0: the loss is then (0,), its sum 0, and backward works. Volumes
(T, D, H, W) work alike. Pixels that are not valid change neither losses nor gradients.
"""

import math

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_bool, check_same_shape, full_precision


def bce_loss(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each mask, the mean over its valid pixels.

    ℓ_t = −1/|V_t| · Σ_{i∈V_t} [y_i log σ(z_i) + (1 − y_i) log σ(−z_i)]

    PixelLM weighs it 2.0 and sums over targets / T.

    Args:
        logits: mask logits, float (T, H, W).
        targets: bool, or float in 0..1 for soft labels, (T, H, W).
        valid: bool (T, H, W), True on the pixels that count.
    Returns:
        (T,) losses >= 0 in nats; 0 where no pixel is valid.
    Raises:
        ValueError: the shapes differ or have no pixels' axis, or valid is not bool.
    """
    return _valid_mean(_pixel_bce(*_cleared(logits, targets, valid)), valid)


def dice_loss(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Soft Dice loss of each mask (linear denominators, smoothing of one pixel).

    ℓ_t = 1 − (2 Σ p_i y_i + 1) / (Σ p_i + Σ y_i + 1),   p = σ(z), sums over valid pixels

    The + 1 makes an empty prediction of an empty target cost ~0, and bounds the slope for tiny targets. PixelLM
    scales its sums by 1/1000 and adds 1e-6 instead; it weighs the loss 0.5. With soft labels p = y is not the minimum.

    Args, Raises: as `bce_loss`.
    Returns:
        (T,) losses in 0..1; 0 where no pixel is valid.
    """
    logits, targets = _cleared(logits, targets, valid)
    probability = logits.sigmoid().masked_fill(~valid, 0).flatten(1)
    targets = targets.flatten(1)
    overlap = (probability * targets).sum(1)
    return 1 - (2 * overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)


def focal_loss(
    logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, gamma: float = 2.0, alpha: float = 0.25
) -> torch.Tensor:
    """Cross-entropy in which easy pixels fade, the mean over valid pixels (Lin et al. 2017, Eq. 5).

    ℓ_t = 1/|V_t| · Σ_{i∈V_t} α_i (1 − q_i)^γ BCE_i,   q = p y + (1 − p)(1 − y),   α_i = α y + (1 − α)(1 − y)

    Args:
        logits, targets, valid: as `bce_loss`.
        gamma: γ >= 1; below 1 the slope is infinite at a perfect pixel.
        alpha: the weight of foreground, 0..1.
    Returns:
        (T,) losses >= 0; 0 where no pixel is valid.
    Raises:
        ValueError: as `bce_loss`, or gamma or alpha is out of range.
    """
    if not (math.isfinite(gamma) and gamma >= 1):
        raise ValueError(f"gamma must be a finite number >= 1, got {gamma}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    logits, targets = _cleared(logits, targets, valid)
    probability = logits.sigmoid()
    miss = probability * (1 - targets) + (1 - probability) * targets  # 1 − q without the cancellation
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return _valid_mean(balance * miss**gamma * _pixel_bce(logits, targets), valid)


def refinement_weights(logits: torch.Tensor, group: torch.Tensor, alpha: float) -> torch.Tensor:
    """Weight α on the pixels that two or more predictions of one answer claim (PixelLM's target refinement).

    A_i = α if Σ_{k∈answer} 1[z_ki > 0] >= 2, else 1

    This is the form of the paper's text (α > 1, weights on plain BCE). PixelLM's released code defines another
    (weight 1 on contested pixels, 0 elsewhere) and comments the call out; the value of α is our reconstruction.

    Args:
        logits: mask logits, float (T, H, W).
        group: int64 (T,), equal for the targets of the same answer.
        alpha: α >= 1; 1 is plain BCE.
    Returns:
        (T, H, W) weights, without gradient; every target of an answer has the same.
    Raises:
        ValueError: group is not (T,), logits have no pixels' axis, or alpha is not a number >= 1.
    """
    if logits.dim() < 2 or group.shape != logits.shape[:1]:
        raise ValueError(f"group must be (T,) for logits (T, H, W), got {tuple(group.shape)}, {tuple(logits.shape)}")
    if not (math.isfinite(alpha) and alpha >= 1):
        raise ValueError(f"alpha must be a finite number >= 1, got {alpha}")
    claimed = (logits.detach() > 0).to(torch.int32)
    # the first target of each one's answer stands for it; `unique` would wait for all that a GPU has queued
    answer = (group[:, None] == group).int().argmax(1) if len(group) else group
    claims = torch.zeros_like(claimed).index_add(0, answer, claimed)[answer]
    weights = torch.ones_like(claims, dtype=full_precision(logits).dtype)
    return weights.masked_fill(claims >= 2, alpha)


def refined_bce_loss(
    logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy with a weight per pixel, the mean over valid pixels (PixelLM's L_ref).

    ℓ_t = 1/|V_t| · Σ_{i∈V_t} A_i BCE(z_i, y_i)

    Divided by the pixels and not by Σ A, so that contested pixels add to the loss instead of diluting the rest.

    Args:
        logits, targets, valid: as `bce_loss`.
        weights: A, float (T, H, W), from `refinement_weights`.
    Returns, Raises: as `bce_loss`; the weights' shape is checked too.
    """
    check_same_shape(logits=logits, weights=weights)
    return _valid_mean(full_precision(weights) * _pixel_bce(*_cleared(logits, targets, valid)), valid)


def intersection_union(
    pred: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in both masks and pixels in either, the integers that gIoU and cIoU are made of.

    I_t = |P ∩ Y ∩ V|,   U_t = |(P ∪ Y) ∩ V|

    Counts and not ratios: cIoU needs ΣI / ΣU over a data set, and sums over ranks have to be exact.

    Args:
        pred, target, valid: bool (T, H, W).
    Returns:
        I and U, int64 (T,); U = 0 where both masks are empty, which the caller has to settle (LISA: IoU 1).
    Raises:
        ValueError: the shapes differ or have no pixels' axis, or a mask is not bool.
    """
    check_same_shape(pred=pred, target=target, valid=valid)
    check_bool(pred=pred, target=target, valid=valid)
    _check_pixels(pred)
    return (pred & target & valid).flatten(1).sum(1), ((pred | target) & valid).flatten(1).sum(1)


def iou_regression_loss(
    predicted: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Squared error of the quality head's IoU against the IoU that the mask has (Mask Scoring R-CNN; SAM).

    ℓ_t = (q_t − IoU_t)²,   IoU_t = |P ∩ Y ∩ V| / |(P ∪ Y) ∩ V|,   P = {z > 0}, Y = {y > 0.5}; 1 if both are empty

    Args:
        predicted: q in 0..1, float (T,).
        logits, targets, valid: as `bce_loss`; no gradient reaches the logits.
    Returns:
        (T,) losses in 0..1.
    Raises:
        ValueError: as `bce_loss`, or predicted is not (T,).
    """
    intersection, union = intersection_union(logits.detach() > 0, targets > 0.5, valid)
    check_same_shape(predicted=predicted, targets=intersection)
    predicted = full_precision(predicted)
    iou = torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
    return (predicted - iou.to(predicted.dtype)).square()


def _check_pixels(masks: torch.Tensor) -> None:
    if masks.dim() < 2:
        raise ValueError(f"masks must be (T, H, W), got {tuple(masks.shape)}")


def _cleared(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets in full precision, 0 where not valid.

    Cleared before the loss and not only after it: 0 times the slope at a padding of −inf would not be a number.
    """
    check_same_shape(logits=logits, targets=targets, valid=valid)
    check_bool(valid=valid)
    _check_pixels(logits)
    return full_precision(logits).masked_fill(~valid, 0), full_precision(targets).masked_fill(~valid, 0)


def _pixel_bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")


def _valid_mean(losses: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return losses.masked_fill(~valid, 0).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
