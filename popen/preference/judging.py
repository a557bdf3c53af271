"""Judges: the quality of each candidate mask."""

import torch


def iou_with_truth(masks_KHW: torch.Tensor, truth_HW: torch.Tensor, valid_HW: torch.Tensor) -> torch.Tensor:
    """IoU of K candidate masks with the truth over valid pixels, (K,) in 0..1; 1 where both are empty."""
    truth = truth_HW & valid_HW
    candidates = masks_KHW & valid_HW
    intersection = (candidates & truth).flatten(1).sum(1).double()
    union = (candidates | truth).flatten(1).sum(1).double()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
