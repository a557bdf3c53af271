"""Polygons turned into masks, pixel for pixel as the tools behind the field's benchmarks do it.

COCO (pycocotools) walks the outline on a grid five times finer, keeps where it crosses the centre line of a column of
pixels, and fills each column from crossing to crossing. OpenCV (`polylines` with `fillPoly`), by which LISA draws
ReasonSeg, works on whole pixels and counts the outline as inside; where a line enters the picture from outside, OpenCV
cuts it first and may set a pixel beside ours.
pycocotools itself crashes or hangs on NaN and on far coordinates; here that is a ValueError.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from popen.data import rle
from popen.data.safe_io import DataError

FINER = 5  # steps of COCO's walk to the pixel
MAX_POINTS = 2**16  # of one polygon
MAX_STEPS = 2**21  # along one outline


def coco_mask(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Fill COCO polygons as pycocotools' `frPyObjects` and `decode` do, and unite them.

    Args:
        polygons: flat lists [x0, y0, x1, y1, ...] in pixels, of at least 3 points, none of them further outside the
            image than its longer side.
    Returns:
        bool (H, W); all False where the polygons pass between the centres of pixels.
    Raises:
        ValueError: no polygons, odd length, NaN, infinity, too few or too many points, or one too far outside.
    """
    _check_size(height, width)
    if not isinstance(polygons, list | tuple) or not polygons:
        raise ValueError("polygons: expected a list of at least one [x0, y0, x1, y1, ...]")
    mask_HW = np.zeros((height, width), dtype=np.bool_)
    for index, polygon in enumerate(polygons):
        if not isinstance(polygon, list | tuple) or len(polygon) % 2:
            raise ValueError(f"polygon {index}: expected x, y, x, y, ... of even length")
        points_P2 = _check_points(list(zip(polygon[::2], polygon[1::2], strict=True)), height, width, index)
        mask_HW |= _coco_polygon(points_P2, height, width)
    return mask_HW


def filled_mask(points: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Fill a polygon as OpenCV's `polylines` and `fillPoly` do: even-odd, and the outline belongs to it.

    Args:
        points: at least 3 pairs [x, y] in pixels, none of them further outside the image than its longer side;
            fractions are cut off, as LISA does by making them int32.
    Returns:
        bool (H, W).
    Raises:
        ValueError: not pairs, NaN, infinity, too few or too many points, or one too far outside.
    """
    _check_size(height, width)
    if not isinstance(points, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in points):
        raise ValueError("polygon: expected a list of pairs [x, y]")
    corners_P2 = np.trunc(_check_points(points, height, width)).astype(np.int64)
    return _outline(corners_P2, height, width) | _interior(corners_P2, height, width)


def segmentation_mask(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Decode the `segmentation` of a COCO annotation, whichever of its forms it has.

    Args:
        segmentation: polygons, an RLE with counts as a list or compressed, or (RefCLEF) a list of such RLEs.
        where: what the error starts with.
    Returns:
        bool (height, width), the union of the parts.
    Raises:
        DataError: empty, malformed, or of another size.
    """
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    try:
        if not parts or not all(isinstance(part, Mapping) for part in parts):
            return coco_mask(segmentation, height, width)
        mask_HW = np.zeros((height, width), dtype=np.bool_)
        for part in parts:
            rle.area(part)  # checks it, before its size is read
            if list(part["size"]) != [height, width]:
                raise ValueError(f"RLE of size {list(part['size'])}, not the image's [{height}, {width}]")
            mask_HW |= rle.decode(part)
        return mask_HW
    except ValueError as error:
        raise DataError(f"{where}: segmentation: {error}; correct or remove the annotation") from None


def _check_size(height: int, width: int) -> None:
    if not (height >= 1 and width >= 1 and height * width <= rle.MAX_PIXELS):
        raise ValueError(f"mask of {height}x{width}: sides must be at least 1 and the area at most {rle.MAX_PIXELS}")


def _check_points(points: Sequence[Sequence[Any]], height: int, width: int, index: int | str = "") -> np.ndarray:
    """The points as float64 (P, 2), or what is wrong with them."""
    where = f"polygon {index}".strip()
    if not 3 <= len(points) <= MAX_POINTS:
        raise ValueError(f"{where}: {len(points)} points; from 3 to {MAX_POINTS} make a polygon")
    if not all(type(value) in (int, float) for point in points for value in point):
        raise ValueError(f"{where}: a coordinate that is not a number")
    side = max(height, width)
    for x, y in points:
        if not (-side <= x <= 2 * side and -side <= y <= 2 * side):  # so that NaN, too, is refused
            shown = f"({ascii(x)[:20]}, {ascii(y)[:20]})" if abs(x) < 1e300 and abs(y) < 1e300 else "(not finite)"
            raise ValueError(f"{where}: point {shown} lies outside {-side}..{2 * side} of a {width}x{height} image")
    return np.array(points, dtype=np.float64)


def _steps(lengths_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edge and step of every point of a walk with `lengths_P` steps on each edge, both ends included."""
    total = int(lengths_P.sum()) + len(lengths_P)
    if total > MAX_STEPS:
        raise ValueError(f"polygon: an outline of {total} steps, over {MAX_STEPS}; simplify it")
    edge_S = np.repeat(np.arange(len(lengths_P)), lengths_P + 1)
    first_P = np.cumsum(lengths_P + 1) - (lengths_P + 1)
    return edge_S, np.arange(total) - first_P[edge_S]


def _coco_polygon(points_P2: np.ndarray, height: int, width: int) -> np.ndarray:
    """One polygon in COCO's convention, bool (H, W)."""
    start_P2 = np.trunc(FINER * points_P2 + 0.5)
    end_P2 = np.roll(start_P2, -1, axis=0)
    steep_P = np.abs(end_P2 - start_P2)[:, 0] < np.abs(end_P2 - start_P2)[:, 1]
    start_P2 = np.where(steep_P[:, None], start_P2[:, ::-1], start_P2)  # now (along, across): the long way first
    end_P2 = np.where(steep_P[:, None], end_P2[:, ::-1], end_P2)
    back_P = end_P2[:, 0] < start_P2[:, 0]  # walked from its lower end, so that both ways round to the same points
    low_P2 = np.where(back_P[:, None], end_P2, start_P2)
    length_P = np.abs(end_P2 - start_P2)[:, 0]
    rise_P = np.where(back_P, -1, 1) * (end_P2 - start_P2)[:, 1] / np.maximum(length_P, 1)
    edge_S, step_S = _steps(length_P.astype(np.int64))
    along_S = (low_P2[edge_S, 0] + step_S).astype(np.int64)
    across_S = np.trunc(low_P2[edge_S, 1] + rise_P[edge_S] * step_S + 0.5).astype(np.int64)
    x_S, y_S = np.where(steep_P[edge_S], (across_S, along_S), (along_S, across_S))

    # the centre line of column c lies between 5c + 2 and 5c + 3; edges meet in one point, and none is crossed there
    column_S, rest_S = np.divmod(np.minimum(x_S[1:], x_S[:-1]), FINER)
    crossing_S = (x_S[1:] != x_S[:-1]) & (edge_S[1:] == edge_S[:-1]) & (rest_S == FINER // 2)
    crossing_S &= (column_S >= 0) & (column_S < width)
    upper_S = np.minimum(y_S[1:], y_S[:-1])
    row_S = np.clip(-((FINER // 2 - upper_S) // FINER), 0, height)  # the first centre at or below it: rounded up
    # a crossing below the image falls on the top of the next column: that is where its run ends
    return _fill((column_S * height + row_S)[crossing_S], width * height).reshape(width, height).T


def _outline(corners_P2: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bresenham's line along every edge, from its left end; halves round towards that end."""
    start_P2, end_P2 = corners_P2, np.roll(corners_P2, -1, axis=0)
    back_P1 = end_P2[:, :1] < start_P2[:, :1]
    start_P2, end_P2 = np.where(back_P1, end_P2, start_P2), np.where(back_P1, start_P2, end_P2)
    delta_P2 = end_P2 - start_P2
    length_P = np.abs(delta_P2).max(1)
    edge_S, step_S = _steps(length_P)
    length_S1, way_S2 = np.maximum(length_P, 1)[edge_S, None], step_S[:, None] * np.abs(delta_P2)[edge_S]
    moved_S2 = -((length_S1 - 2 * way_S2) // (2 * length_S1))  # way / length, rounded
    x_S, y_S = (start_P2[edge_S] + np.sign(delta_P2)[edge_S] * moved_S2).T
    inside_S = (x_S >= 0) & (x_S < width) & (y_S >= 0) & (y_S < height)
    mask_HW = np.zeros((height, width), dtype=np.bool_)
    mask_HW[y_S[inside_S], x_S[inside_S]] = True
    return mask_HW


def _interior(corners_P2: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels of each row between its odd and its even crossings; an edge has its upper end and not its lower."""
    start_P2, end_P2 = corners_P2, np.roll(corners_P2, -1, axis=0)
    down_P1 = start_P2[:, 1:] <= end_P2[:, 1:]
    upper_P2, lower_P2 = np.where(down_P1, start_P2, end_P2), np.where(down_P1, end_P2, start_P2)
    fall_P2 = lower_P2 - upper_P2
    edge_S, step_S = _steps(fall_P2[:, 1])
    x_S = upper_P2[edge_S, 0] + step_S * fall_P2[edge_S, 0] // np.maximum(fall_P2[edge_S, 1], 1)
    y_S = upper_P2[edge_S, 1] + step_S
    crossing_S = (step_S < fall_P2[edge_S, 1]) & (y_S >= 0) & (y_S < height)
    flip_S = y_S * (width + 1) + np.clip(
        x_S + 1, 0, width
    )  # the first pixel right of it; one more column ends the row
    return _fill(flip_S[crossing_S], height * (width + 1)).reshape(height, width + 1)[:, :width]


def _fill(flips_S: np.ndarray, size: int) -> np.ndarray:
    """bool (size,): from False, each flip turns what follows; one at `size` turns nothing."""
    place_F, count_F = np.unique(flips_S, return_counts=True)
    turns = np.zeros(size + 1, dtype=np.bool_)
    turns[place_F[count_F % 2 == 1]] = True
    return np.logical_xor.accumulate(turns)[:size]
