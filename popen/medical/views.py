"""Flipped views of a picture, as the axes that are flipped; a view undoes itself."""

from itertools import combinations

import torch

View = tuple[int, ...]  # negative axes, of the spatial ones; () is the picture as it is


def flip_views(spatial_dims: int) -> tuple[View, ...]:
    """All 2^d flips of a picture with d spatial axes, the unflipped one first."""
    axes = range(-spatial_dims, 0)
    return tuple(view for count in range(spatial_dims + 1) for view in combinations(axes, count))


def flipped(tensor: torch.Tensor, view: View) -> torch.Tensor:
    """A view of pictures, masks or logits (..., *spatial)."""
    return tensor.flip(view) if view else tensor


def flipped_rows(tensor: torch.Tensor, views: list[View]) -> torch.Tensor:
    """Each row of a batch in its own view."""
    if not any(views):
        return tensor
    return torch.stack([flipped(row, view) for row, view in zip(tensor, views, strict=True)])
