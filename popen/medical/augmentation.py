"""Random rotation, zoom, shift and intensity of a labelled picture, 2-D or 3-D, from torch's own generator."""

import math

import torch
import torch.nn.functional as F

ANGLE = math.radians(20)
ZOOM = 0.2  # of the log scale
SHIFT = 0.1  # of half a side
GAIN, OFFSET = 0.2, 0.2  # of intensities that have a spread of about 1
FAR = 1e6  # beyond any band, in its unit: how far a boundary is that is not in the picture


def augmented(picture: torch.Tensor, masks: torch.Tensor, *maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A picture (C, *spatial) moved and recoloured, with its bool masks (K, *spatial) and float maps moved along.

    What comes in from outside repeats the edge; distances are those before the zoom, and the infinite
    ones of an empty or full mask become ±`FAR`. Preference pairs are not moved: the reference's logits are those of
    the flipped views alone.
    """
    grid = F.affine_grid(random_affine(picture.dim() - 1)[None], [1, 1, *picture.shape[1:]], align_corners=False)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(tensor[None].float(), grid, padding_mode="border", align_corners=False)[0]

    gain, offset = (bound * (2 * torch.rand(()) - 1) for bound in (GAIN, OFFSET))
    recoloured = moved(picture) * (1 + gain) + offset
    # interpolation has weights of 0, and 0 times infinity is not a number
    return recoloured, moved(masks) > 0.5, *(moved(own.clamp(-FAR, FAR)) for own in maps)


def random_affine(spatial_dims: int) -> torch.Tensor:
    """A rotation about a random axis, zoom and shift as an affine matrix (d, d + 1) of normalised coordinates."""
    angle, zoom = (2 * torch.rand(()) - 1) * ANGLE, torch.exp((2 * torch.rand(()) - 1) * ZOOM)
    matrix = torch.eye(spatial_dims)
    first, second = torch.randperm(spatial_dims)[:2].sort().values.tolist()
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix[first, first], matrix[second, second] = cos, cos
    matrix[first, second], matrix[second, first] = -sin, sin
    shift = SHIFT * (2 * torch.rand(spatial_dims, 1) - 1)
    return torch.cat([matrix * zoom, shift], dim=1)
