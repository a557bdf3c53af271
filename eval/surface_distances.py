"""How far two masks' surfaces lie apart, in millimetres: HD95, ASD, ASSD and NSD, in 2-D and 3-D.

A mask's surface is those of its pixels that share a face with a pixel outside it; beyond the picture's edge is
outside. Distances run between centres of pixels. Along an axis of one pixel there is no outside, so that a picture
and a volume of one slice score alike. Other tools differ: mesh-based ones measure between pixels' faces, and some
take pixels that touch by a corner for neighbours.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class SurfaceDistances:
    """From every surface pixel of the one mask to the nearest of the other, mm, both ways; neither is empty."""

    to_truth: np.ndarray
    to_predicted: np.ndarray


def surface_distances(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> SurfaceDistances:
    """Distances between the surfaces of two masks that both hold something.

    Args:
        predicted, truth: bool (*spatial), 2-D or 3-D.
        spacing: mm between pixels along each axis.
    Raises:
        ValueError: shapes differ, a mask is not bool, spacing does not fit the shape, or a mask is empty.
    """
    check_masks(predicted, truth, spacing)
    if not (predicted.any() and truth.any()):
        raise ValueError("an empty mask has no surface; score it by the policy for missing regions")
    axes = [axis for axis, size in enumerate(truth.shape) if size > 1] or [0]
    shape, sampling = [truth.shape[axis] for axis in axes], [spacing[axis] for axis in axes]
    predicted, truth = predicted.reshape(shape), truth.reshape(shape)
    box = bounding_box(predicted | truth)  # nearest surfaces lie inside it, and beyond it is outside as well
    surface_p, surface_t = surface(predicted[box]), surface(truth[box])
    return SurfaceDistances(
        to_truth=ndimage.distance_transform_edt(~surface_t, sampling)[surface_p],
        to_predicted=ndimage.distance_transform_edt(~surface_p, sampling)[surface_t],
    )


def hd95(distances: SurfaceDistances) -> float:
    """The larger of the two directed 95th percentiles, mm; between ranks linearly interpolated.

    Not the percentile of both directions pooled, which is smaller where one surface is small.
    """
    return max(float(np.percentile(d, 95)) for d in (distances.to_truth, distances.to_predicted))


def asd(distances: SurfaceDistances) -> float:
    """Mean distance from the predicted surface to the true one, mm; blind to what the prediction leaves out."""
    return float(distances.to_truth.mean())


def assd(distances: SurfaceDistances) -> float:
    """Mean distance over the surface pixels of both masks, mm: both directions pooled, not the mean of two means."""
    return float(np.concatenate([distances.to_truth, distances.to_predicted]).mean())


def nsd(distances: SurfaceDistances, tolerance: float) -> float:
    """Share of the surface pixels of both masks within `tolerance` mm of the other's surface, 0..1.

    (|{d_p ≤ τ}| + |{d_t ≤ τ}|) / (|S_p| + |S_t|), the surface Dice of Nikolov et al. 2018, but that every
    surface pixel counts alike instead of by its area.

    Raises:
        ValueError: tolerance below 0 or not finite.
    """
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance {tolerance} must be a finite number of mm from 0 on")
    both = np.concatenate([distances.to_truth, distances.to_predicted])
    return float((both <= tolerance).mean())


def surface(mask: np.ndarray) -> np.ndarray:
    """The pixels of a bool mask (*spatial) that share a face with a pixel outside it, or with the array's edge."""
    return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1))


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box, a slice per axis, around a bool mask (*spatial) that holds something."""
    box = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(box)


def check_masks(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> None:
    """Refuses what `surface_distances` cannot measure, empty masks apart."""
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {predicted.shape} and truth {truth.shape} differ in size")
    if predicted.dtype != bool or truth.dtype != bool:
        raise ValueError(
            f"masks must be bool, not {predicted.dtype} and {truth.dtype}; compare with a threshold first"
        )
    check_spacing(truth.shape, spacing)


def check_spacing(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """ValueError unless there is one positive finite distance per axis."""
    if len(spacing) != len(shape) or not all(0 < s < np.inf for s in spacing):
        raise ValueError(f"spacing {spacing} must be a positive finite number of mm for each axis of {shape}")
