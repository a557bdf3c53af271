"""Distances to the boundary of a mask: straight through space, and along paths that avoid edges of the picture.

NumPy and SciPy, for the loader's workers; what is made of the distances is in `popen.objectives.uncertainty`.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra


def signed_distance(masks: np.ndarray, spacing: Sequence[float], valid: np.ndarray | None = None) -> np.ndarray:
    """Signed Euclidean distance of every pixel to the other side of its mask, positive inside.

    d_i = min_{j∉Y} ‖x_i − x_j‖ for i ∈ Y,   −min_{j∈Y} ‖x_i − x_j‖ for i ∉ Y

    Measured from centre to centre, so |d| is at least the smallest spacing: a band narrower than that is empty.

    Args:
        masks: bool (..., *spatial), 2-D or 3-D; each on its own.
        spacing: mm between pixel centres along every spatial axis; its length says how many there are.
        valid: bool (*spatial), the pixels that count, all by default; others are on neither side, so that a mask has
            no boundary where it meets padding.
    Returns:
        float32 in mm, shaped as the masks; +inf where a mask is full, −inf where it is empty.
    Raises:
        ValueError: masks are not bool or have fewer axes than the spacing, a spacing is not a positive number, or
            valid is not bool (*spatial).
    """
    _check(masks=masks, spacing=spacing)
    axes = len(spacing)
    counted = _counted(valid, masks.shape[-axes:])
    distances = np.empty(masks.shape, np.float32)
    for place in np.ndindex(masks.shape[:-axes]):
        mask = masks[place]
        distances[place] = np.where(mask, _away_from(~mask & counted, spacing), -_away_from(mask & counted, spacing))
    return distances


def geodesic_distance(
    image: np.ndarray,
    seeds: np.ndarray,
    spacing: Sequence[float],
    gradient_weight: float,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """Length of the shortest path from the seeds, on which a change of intensity counts as a way to go.

    D_i = min over paths from a seed of Σ √((1 − λ) ‖Δx‖² + λ ‖ΔI‖²),   steps to the 8 (3-D: 26) neighbours

    λ = 0 is distance in space, up to 8.3 % (3-D: 12.9 %) above the Euclidean one with cubic pixels, since steps have
    few directions; λ = 1 is intensity alone. Exact on this graph, where raster scans (Toivanen 1996; GeoLS)
    approximate; the cost of a step is a reconstruction.

    Args:
        image: float (C, *spatial), of a scale that compares with mm: a step of one unit is as far as 1 mm at λ = ½.
        seeds: bool (*spatial).
        spacing: mm between pixel centres along every spatial axis.
        gradient_weight: λ in 0..1.
        valid: bool (*spatial), the pixels that paths may pass, all by default.
    Returns:
        float32 (*spatial) >= 0; 0 on the seeds, inf where no path leads.
    Raises:
        ValueError: seeds are not bool or not the image's without C, the image is not finite, a spacing is not a
            positive number, gradient_weight is out of range, or valid is not bool (*spatial).
    """
    _check_picture(image, seeds, spacing, gradient_weight)
    counted = _counted(valid, seeds.shape)
    seeds = seeds & counted
    if not seeds.any():
        return np.full(seeds.shape, np.inf, np.float32)
    index = np.arange(seeds.size).reshape(seeds.shape)
    half = [step for step in itertools.product((-1, 0, 1), repeat=len(spacing)) if step > (0,) * len(spacing)]
    starts, ends, costs = [], [], []
    for step in half:  # the other half is the same edges, walked back
        here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, seeds.shape, strict=True))
        there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, seeds.shape, strict=True))
        space = sum((s * mm) ** 2 for s, mm in zip(step, spacing, strict=True))
        change = np.square(image[:, *there].astype(np.float64) - image[:, *here]).sum(0)
        open_ = counted[here] & counted[there]
        starts.append(index[here][open_])
        ends.append(index[there][open_])
        costs.append(np.sqrt((1 - gradient_weight) * space + gradient_weight * change)[open_])
    edges = np.concatenate(costs), (np.concatenate(starts), np.concatenate(ends))
    graph = coo_array(edges, shape=(seeds.size, seeds.size)).tocsr()  # keeps edges of length 0
    found = dijkstra(graph, directed=False, indices=np.flatnonzero(seeds), min_only=True)
    return found.reshape(seeds.shape).astype(np.float32)


def geodesic_membership(
    image: np.ndarray,
    masks: np.ndarray,
    spacing: Sequence[float],
    gradient_weight: float,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """How much each pixel belongs to each region by its geodesic distance to the region's core (GeoLS, MIDL 2023).

    g_i = (exp(−D_i / D̄) − m) / (1 − m),   D̄ the mean of D, m the smallest exp(−D_i / D̄)

    GeoLS seeds the distance with the region's skeleton; here with its core: in each connected part, the pixels at
    least half as deep as its deepest one, so that a small lesion has seeds beside a large one (reconstruction).

    Args:
        image: float (C, *spatial), scaled as `geodesic_distance` says.
        masks: bool (K, *spatial).
        spacing, gradient_weight, valid: as `geodesic_distance`; D̄ and m are over the pixels that a path leads to and
            the pixels that count.
    Returns:
        float32 (K, *spatial) in 0..1; 1 on the core, 0 everywhere for an empty region, and where no path leads.
    Raises:
        ValueError: as `geodesic_distance`.
    """
    _check(masks=masks, spacing=spacing)
    counted = _counted(valid, masks.shape[1:])
    membership = np.zeros(masks.shape, np.float32)
    for k, mask in enumerate(masks):
        core = _core(mask, spacing, counted)
        distance = geodesic_distance(image, core, spacing, gradient_weight, valid)
        if core.any():
            mean = float(distance[np.isfinite(distance)].mean())
            near = np.exp(-distance / max(mean, np.finfo(np.float32).tiny))
            least = near[counted].min()
            membership[k] = np.where(counted, (near - least) / (1 - least) if least < 1 else 1, 0)
    return membership


def one_hot_geodesic_membership(
    image: np.ndarray, masks: np.ndarray, spacing: Sequence[float], gradient_weight: float
) -> np.ndarray:
    """`geodesic_membership` for one-hot masks: the background, channel 0, has what the classes leave (GeoLS).

    g_0i = 1 − mean over the classes present of g_ki; 1 everywhere without any

    Args, Raises: as `geodesic_membership`.
    Returns:
        float32 (K, *spatial) in 0..1.
    """
    membership = np.zeros(masks.shape, np.float32)
    membership[1:] = geodesic_membership(image, masks[1:], spacing, gradient_weight)
    present = [k for k in range(1, len(masks)) if masks[k].any()]
    membership[0] = 1 - membership[present].mean(0) if present else 1
    return membership


def _core(mask: np.ndarray, spacing: Sequence[float], counted: np.ndarray) -> np.ndarray:
    """Pixels at least half as deep as the deepest of their connected part."""
    outside, mask = ~mask & counted, mask & counted
    if not outside.any():
        return mask
    depth = _away_from(outside, spacing)
    parts, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    deepest = ndimage.maximum(depth, parts, range(count + 1))  # of background first
    return mask & (2 * depth >= np.asarray(deepest)[parts])


def _away_from(pixels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Euclidean distance of each pixel to the nearest of some; inf where there are none."""
    if not pixels.any():
        return np.full(pixels.shape, np.inf)
    return ndimage.distance_transform_edt(~pixels, sampling=spacing)


def _counted(valid: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if valid is None:
        return np.ones(shape, bool)
    if valid.dtype != np.bool_ or valid.shape != tuple(shape):
        raise ValueError(f"valid must be bool {tuple(shape)}, got {valid.dtype} {valid.shape}")
    return valid


def _check(masks: np.ndarray, spacing: Sequence[float]) -> None:
    if not (len(spacing) in (2, 3) and all(math.isfinite(mm) and mm > 0 for mm in spacing)):
        raise ValueError(f"spacing must be 2 or 3 finite numbers > 0, got {tuple(spacing)}")
    if masks.dtype != np.bool_:
        raise ValueError(f"masks must be bool, got {masks.dtype}")
    if masks.ndim < len(spacing):
        raise ValueError(f"masks of shape {masks.shape} have fewer axes than the spacing {tuple(spacing)}")


def _check_picture(image: np.ndarray, seeds: np.ndarray, spacing: Sequence[float], gradient_weight: float) -> None:
    _check(masks=seeds, spacing=spacing)
    if image.shape[1:] != seeds.shape or seeds.ndim != len(spacing):
        raise ValueError(
            f"image {image.shape} must be (C, *spatial) for masks of {seeds.shape} and {len(spacing)} spacings"
        )
    if not np.isfinite(image).all():
        raise ValueError("image must be finite")
    if not 0 <= gradient_weight <= 1:
        raise ValueError(f"gradient_weight must be in 0..1, got {gradient_weight}")
