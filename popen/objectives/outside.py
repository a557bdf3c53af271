"""What holds a segmenter outside R: preferences between two masks never reach the pixels on which both agree."""

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_bool, check_same_shape, full_precision


def outside_loss(
    logits: torch.Tensor, chosen: torch.Tensor, index_NR: torch.Tensor, sign_NR: torch.Tensor, entries: int
) -> torch.Tensor:
    """Cross-entropy with what both masks of N pairs say where they agree (an anchor as RLPO's consistency; ours).

    ℓ = mean over n and i ∉ R_n of −log p(y_ni)

    A disagreement is what `popen.objectives.regions` says it is, so outside R are entries (region, pixel) of
    independent regions, each with its binary cross-entropy, and whole pixels of one-hot classes.

    Args:
        logits: float (N, K, *spatial), 2-D or 3-D. chosen: bool, same shape.
        index_NR, sign_NR, entries: those of `Regions`.
    Returns:
        (), >= 0 in nats; 0 where nothing lies outside.
    Raises:
        ValueError: logits and chosen, or index and sign, differ in shape, chosen is not bool, or entries is neither 1
            nor 2.
    """
    check_same_shape(logits=logits, chosen=chosen)
    check_same_shape(index=index_NR, sign=sign_NR)
    check_bool(chosen=chosen)
    if entries not in (1, 2):
        raise ValueError(f"entries must be 1, or 2 for one-hot masks, got {entries}")
    logits = full_precision(logits)
    differs = torch.zeros_like(logits.flatten(1)).scatter_add_(1, index_NR, sign_NR.abs().to(logits.dtype))
    if entries == 1:
        target = chosen.flatten(1).to(logits.dtype)
        wrong = F.binary_cross_entropy_with_logits(logits.flatten(1), target, reduction="none")
        agreed = differs == 0
    else:  # filled, not multiplied: 0 times a log-probability of −inf would not be a number
        wrong = -logits.log_softmax(1).masked_fill(~chosen, 0).sum(1).flatten(1)
        agreed = (differs.view_as(logits) == 0).all(1).flatten(1)
    outside = agreed.to(logits.dtype)
    return (wrong * outside).sum() / outside.sum().clamp(min=1)
