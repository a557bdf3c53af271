"""How different K candidates of a picture are: without diversity there is nothing to prefer."""

import torch

from popen.objectives.shapes import check_bool


def pairwise_iou(masks: torch.Tensor) -> float:
    """Mean IoU over all pairs of K >= 2 masks, bool (K, *shape); 1 for a pair of empty masks.

    Raises:
        ValueError: fewer than 2 masks, or not bool.
    """
    check_bool(masks=masks)
    count = len(masks)
    if count < 2:
        raise ValueError(f"{count} candidates: diversity needs at least 2")
    flat = masks.flatten(1).double()
    both = flat @ flat.T
    on = flat.sum(1)
    union = on[:, None] + on[None] - both
    iou = torch.where(union > 0, both / union.clamp(min=1), 1.0)
    return float((iou.sum() - iou.diagonal().sum()) / (count * (count - 1)))


def variance_map(masks: torch.Tensor) -> torch.Tensor:
    """Variance of each pixel over K masks, bool (K, *shape) to float (*shape) in 0..0.25: p (1 − p)."""
    share = masks.double().mean(0)
    return share * (1 - share)
