"""K hypotheses of each picture as logits (B, K, C, *spatial), all on the picture's own grid.

Dropout's are `popen.medical.dropout.dropout_hypotheses`. Masks come from logits by `Segmenter.masks_from`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from popen.data.safe_io import DataError
from popen.medical.segmenter import Segmenter
from popen.medical.views import View, flipped


@torch.no_grad()
def flip_hypotheses(network: nn.Module, pictures: torch.Tensor, views: Sequence[View]) -> torch.Tensor:
    """One hypothesis per view, flipped back (test-time augmentation)."""
    seen = torch.cat([flipped(pictures, view) for view in views])
    logits = network(seen).unflatten(0, (len(views), len(pictures)))
    return torch.stack([flipped(own, view) for own, view in zip(logits, views, strict=True)], dim=1)


@torch.no_grad()
def threshold_hypotheses(
    network: nn.Module, pictures: torch.Tensor, offsets: Sequence[float], activation: str
) -> torch.Tensor:
    """One forward pass cut at several heights: the logits plus each offset (Konwer et al. 2025; SAM's candidates).

    With softmax the background, channel 0, stays: an offset on all classes would change nothing.
    """
    logits = network(pictures)
    raised = torch.ones_like(logits)
    if activation == "softmax":
        raised[:, 0] = 0
    return torch.stack([logits + offset * raised for offset in offsets], dim=1)


@torch.no_grad()
def checkpoint_hypotheses(networks: Sequence[nn.Module], pictures: torch.Tensor) -> torch.Tensor:
    """One hypothesis per network: checkpoints of one training, or several trainings."""
    return torch.stack([network(pictures) for network in networks], dim=1)


def checkpoints_like(segmenter: Segmenter, folders: Sequence[str | Path]) -> list[Segmenter]:
    """Saved segmenters in eval mode, on the device of one that they stand in for.

    Raises:
        DataError: fewer than 2 folders, or one whose segmenter sees or tells other things; says which.
    """
    if len(folders) < 2:
        raise DataError(f"checkpoints: {len(folders)} folders, and hypotheses are at least 2; name more")
    found = []
    for folder in folders:
        own = Segmenter.from_pretrained(folder)
        for name in ("spatial_dims", "in_channels", "regions", "activation", "patch_size"):
            here, wanted = getattr(own.settings, name), getattr(segmenter.settings, name)
            if here != wanted:
                raise DataError(f"{folder}: {name} {here}, the model has {wanted}; take checkpoints of the same task")
        found.append(own.to(next(segmenter.parameters()).device))
    return found


def probabilities_of(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """Probabilities of hypotheses (B, K, C, *spatial); their mean over K is what the ensemble agrees on."""
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(2)
