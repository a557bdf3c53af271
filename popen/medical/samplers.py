"""K hypotheses of each picture as logits (B, K, C, *spatial), all on the picture's own grid.

Dropout's are `popen.medical.dropout.dropout_hypotheses`. Masks come from logits by `Segmenter.masks_from`.
"""

from collections.abc import Sequence

import torch
from torch import nn

from popen.medical.views import View, flipped


@torch.no_grad()
def flip_hypotheses(network: nn.Module, pictures: torch.Tensor, views: Sequence[View]) -> torch.Tensor:
    """One hypothesis per view, flipped back (test-time augmentation)."""
    seen = torch.cat([flipped(pictures, view) for view in views])
    logits = network(seen).unflatten(0, (len(views), len(pictures)))
    return torch.stack([flipped(own, view) for own, view in zip(logits, views, strict=True)], dim=1)


@torch.no_grad()
def threshold_hypotheses(network: nn.Module, pictures: torch.Tensor, offsets: Sequence[float]) -> torch.Tensor:
    """One forward pass cut at several heights: the logits plus each offset (Konwer et al. 2025; SAM's candidates).

    On softmax logits an offset raises the classes above the background, channel 0, where there are several.
    """
    logits = network(pictures)
    return torch.stack([logits + offset for offset in offsets], dim=1)


@torch.no_grad()
def checkpoint_hypotheses(networks: Sequence[nn.Module], pictures: torch.Tensor) -> torch.Tensor:
    """One hypothesis per network: checkpoints of one training, or several trainings."""
    return torch.stack([network(pictures) for network in networks], dim=1)


def consensus(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Mean probability over hypotheses, (B, K, C, *spatial) to (B, C, *spatial)."""
    probabilities = logits.sigmoid() if activation == "sigmoid" else logits.softmax(2)
    return probabilities.mean(1)
