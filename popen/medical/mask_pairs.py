"""Preference pairs of masks with the reference's logits where they differ, so that no second model is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from popen.medical.views import View, flipped
from popen.objectives.regions import Regions, independent_regions, one_hot_regions


@dataclass(frozen=True)
class MaskPair:
    """Two masks of one picture, bool (K, *spatial), the region where they differ, and what the reference says there.

    `index`, `sign`, `classes` (R,) are those of `Regions`; `reference` (V, R) are the reference's logits under each
    view, on the unflipped grid; `entries` is that of `Regions`; `gap` is the judge's quality of the chosen mask minus
    that of the rejected one; `weight` in 0..1 is how much the pair counts.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    index: torch.Tensor
    sign: torch.Tensor
    classes: torch.Tensor
    reference: torch.Tensor
    entries: int
    gap: float
    weight: float = 1.0


def region_of(chosen: torch.Tensor, rejected: torch.Tensor, activation: str) -> Regions:
    """Where two masks (K, *spatial) differ, as a batch of one; `activation` is sigmoid or softmax."""
    regions = independent_regions if activation == "sigmoid" else one_hot_regions
    return regions(chosen[None], rejected[None])


def region_share(chosen: torch.Tensor, rejected: torch.Tensor, activation: str) -> float:
    """|R| / |Ω| of two masks (K, *spatial), 0..1: of all regions' pixels, or of the pixels that have a class."""
    differs = chosen != rejected
    return float((differs if activation == "sigmoid" else differs.any(0)).float().mean())


@torch.no_grad()
def with_reference(
    network: nn.Module,
    activation: str,
    pictures: Sequence[torch.Tensor],
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor, float]],
    views: Sequence[View],
    batch_size: int = 16,
) -> list[MaskPair]:
    """Pairs (chosen, rejected, gap) with what the network, in evaluation mode, makes of their regions now.

    A network that is not equivariant answers otherwise about a flipped picture, so every view that training may show
    has logits of its own; with one view's logits for all of them the margin would not start at 0.
    """
    device = next(network.parameters()).device
    regions = [region_of(chosen, rejected, activation) for chosen, rejected, _ in pairs]
    seen: list[list[torch.Tensor]] = [[] for _ in pairs]
    for start in range(0, len(pairs), batch_size):
        batch = torch.stack(list(pictures[start : start + batch_size])).to(device)
        for view in views:
            logits = flipped(network(flipped(batch, view)), view).float().cpu()
            for at, row in enumerate(logits, start):
                seen[at].append(row.flatten()[regions[at].index[0]])
    return [
        MaskPair(chosen, rejected, r.index[0], r.sign[0], r.classes[0], torch.stack(rows), r.entries, gap)
        for (chosen, rejected, gap), r, rows in zip(pairs, regions, seen, strict=True)
    ]
