import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data import rle
from popen.data.polygons import MAX_POINTS, coco_mask, filled_mask, segmentation_mask
from popen.data.safe_io import DataError


def box(top, bottom, left, right, height=8, width=10):
    mask_HW = np.zeros((height, width), dtype=bool)
    mask_HW[top:bottom, left:right] = True
    return mask_HW


# by hand, COCO: corner 5x; column c is entered between 5c + 2 and 5c + 3, so x = 1..4 covers 5..20 and columns
# 1, 2, 3; the row is (5y - 2) / 5 rounded up, so y = 1 starts row 1 and y = 4 ends before row 4
COCO = [
    ([1, 1, 1, 4, 4, 4, 4, 1], box(1, 4, 1, 4)),
    ([4, 1, 4, 4, 1, 4, 1, 1], box(1, 4, 1, 4)),  # the other way round, from another corner
    ([1.5, 1, 1.5, 4, 4.5, 4, 4.5, 1], box(1, 4, 2, 5)),  # 8..23: the lines at 12, 17, 22
    ([1.4, 1, 1.4, 4, 4.4, 4, 4.4, 1], box(1, 4, 1, 4)),  # 7..22: 7, 12, 17
    ([1, 1.4, 1, 4.6, 4, 4.6, 4, 1.4], box(1, 5, 1, 4)),  # y 7..23: rows 1..5 without the fifth
    ([1, 1.5, 1, 4.4, 4, 4.4, 4, 1.5], box(2, 4, 1, 4)),  # y 8..22: rows 2..4 without the fourth
    ([-3, -2, -3, 20, 20, 20, 20, -2], box(0, 8, 0, 10)),  # all around the image
    ([5, 2, 5, 20, 20, 20, 20, 2], box(2, 8, 5, 10)),  # out at the bottom and at the right
    ([-9, 2, -9, 5, -1, 5, -1, 2], box(0, 0, 0, 0)),  # left of it
    ([1.5, 1, 1.5, 4, 2.4, 4, 2.4, 1], box(1, 4, 2, 2)),  # 8..12 holds no 12..13: between two centres
    ([3, 3, 3, 3, 3, 3], box(0, 0, 0, 0)),  # a point
]


@pytest.mark.parametrize(("polygon", "mask_HW"), COCO)
def test_coco_by_hand(polygon, mask_HW):
    made = coco_mask([polygon], *mask_HW.shape)
    assert made.dtype == np.bool_
    assert np.array_equal(made, mask_HW)


def test_coco_triangle_by_hand():
    # corners (0, 0), (20, 0), (0, 20) of the fine grid; the slope's y at x is 20 - x, and at the line of column c it
    # ends at 17 - 5c: rows up to (15 - 5c) / 5 = 3 - c
    assert coco_mask([[0, 0, 4, 0, 0, 4]], 4, 4).tolist() == [
        [True, True, True, False],
        [True, True, False, False],
        [True, False, False, False],
        [False, False, False, False],
    ]


def test_coco_unites_polygons_and_crossing_ones_leave_holes():
    two = coco_mask([[1, 1, 1, 4, 4, 4, 4, 1], [3, 1, 3, 4, 6, 4, 6, 1]], 8, 10)
    assert np.array_equal(two, box(1, 4, 1, 6))
    twice = [1, 1, 1, 4, 4, 4, 4, 1, 1, 1, 1, 4, 4, 4, 4, 1]  # one polygon round the same square twice: even-odd
    assert not coco_mask([twice], 8, 10).any()


def transcribed_coco(polygon, height, width):
    """The C code of rleFrPoly, step by step: the runs of the mask."""
    xs = [int(5 * v + 0.5) for v in polygon[::2]]
    ys = [int(5 * v + 0.5) for v in polygon[1::2]]
    walk = []
    for (x0, y0), (x1, y1) in zip(
        zip(xs, ys, strict=True), zip(xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True), strict=True
    ):
        across, down = abs(x1 - x0), abs(y1 - y0)
        flat = across >= down
        flip = x0 > x1 if flat else y0 > y1
        if flip:
            x0, y0, x1, y1 = x1, y1, x0, y0
        length = across if flat else down
        slope = ((y1 - y0) if flat else (x1 - x0)) / length if length else math.nan
        for t in reversed(range(length + 1)) if flip else range(length + 1):
            if not length:
                walk.append((x0, -(2**31)))  # what C makes of NaN
            elif flat:
                walk.append((x0 + t, int(y0 + slope * t + 0.5)))
            else:
                walk.append((int(x0 + slope * t + 0.5), y0 + t))
    ends = [height * width]
    for (u0, v0), (u1, v1) in itertools.pairwise(walk):
        x = ((u1 if u1 < u0 else u1 - 1) + 0.5) / 5 - 0.5
        if u0 != u1 and x == math.floor(x) and 0 <= x <= width - 1:
            ends.append(int(x) * height + math.ceil(min(max((min(v0, v1) + 0.5) / 5 - 0.5, 0), height)))
    ends.sort()
    lengths = [end - before for before, end in zip([0, *ends], ends, strict=False)]
    runs, rest = [lengths[0]], iter(lengths[1:])
    for length in rest:
        if length:
            runs.append(length)
        else:  # an empty run joins its neighbours
            runs[-1] += next(rest, 0)
    return runs


def corners(side, margin, number):
    value = number(-margin, side + margin)
    return st.lists(st.tuples(value, value), min_size=3, max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        corners(24, 20, lambda low, high: st.floats(low, high, width=32)),
        corners(24, 20, lambda low, high: st.integers(low * 10, high * 10).map(lambda v: v / 10)),
        corners(24, 0, st.integers),
    )
)
def test_coco_gives_the_runs_of_the_c_code(points):
    polygon = [value for point in points for value in point]
    runs = transcribed_coco(polygon, 21, 24)
    assert np.array_equal(coco_mask([polygon], 21, 24), rle.decode({"size": [21, 24], "counts": runs}))


def test_coco_gives_the_runs_of_the_c_code_at_the_size_of_photographs():
    rng = np.random.default_rng(0)
    for _ in range(5):
        height, width = rng.integers(200, 640, 2).tolist()
        turn = np.sort(rng.uniform(0, 2 * np.pi, 60))
        reach = rng.uniform(0.1, 0.6, 60)
        xy = np.stack([width * (0.5 + reach * np.cos(turn)), height * (0.5 + reach * np.sin(turn))], -1).round(2)
        polygon = xy.ravel().tolist()
        runs = transcribed_coco(polygon, height, width)
        made = coco_mask([polygon], height, width)
        assert np.array_equal(made, rle.decode({"size": [height, width], "counts": runs}))
        assert 0 < made.mean() < 1


# by hand, OpenCV: the outline belongs to the polygon, so a square from 1 to 4 is 4 pixels wide
FILLED = [
    ([[1, 1], [1, 4], [4, 4], [4, 1]], box(1, 5, 1, 5)),
    ([[1.9, 1.9], [1.9, 4.9], [4.9, 4.9], [4.9, 1.9]], box(1, 5, 1, 5)),  # fractions are cut off
    ([[-0.9, 1], [-0.9, 4], [4, 4], [4, 1]], box(1, 5, 0, 5)),  # towards zero
    ([[-5, -5], [-5, 5], [5, 5], [5, -5]], box(0, 6, 0, 6)),
    ([[-5, -5], [-5, 15], [15, 15], [15, -5]], box(0, 8, 0, 10)),
    ([[3, 3], [3, 3], [3, 3]], box(3, 4, 3, 4)),  # a point
    ([[2, 3], [7, 3], [4, 3]], box(3, 4, 2, 8)),  # a line
    ([[-5, 1], [-5, 4], [-2, 4]], box(0, 0, 0, 0)),  # outside
]


@pytest.mark.parametrize(("points", "mask_HW"), FILLED)
def test_filled_by_hand(points, mask_HW):
    made = filled_mask(points, *mask_HW.shape)
    assert made.dtype == np.bool_
    assert np.array_equal(made, mask_HW)


def test_slopes_are_drawn_as_bresenham_does():
    # a step up every two: after one of two the error is exactly a half, and the line stays at its left end's height
    assert np.argwhere(filled_mask([[0, 0], [4, 2], [0, 0]], 3, 5)).tolist() == [
        [0, 0], [0, 1], [1, 2], [1, 3], [2, 4],
    ]  # fmt: skip
    assert np.argwhere(filled_mask([[0, 2], [4, 0], [0, 2]], 3, 5)).tolist() == [
        [0, 4], [1, 2], [1, 3], [2, 0], [2, 1],
    ]  # fmt: skip
    assert filled_mask([[0, 0], [3, 0], [0, 3]], 4, 4).sum() == 10  # the triangle with its diagonal: 4 + 3 + 2 + 1


def test_a_polygon_that_crosses_itself_is_even_odd():
    star = [[10, 0], [16, 19], [0, 7], [20, 7], [4, 19]]
    made = filled_mask(star, 20, 21)
    assert made[3, 10] and made[16, 6] and not made[10, 10]  # points are in, the heart of it is out


@settings(max_examples=80, deadline=None)
@given(corners(30, 0, st.integers), st.integers(1, 3))
def test_filled_is_the_outline_and_every_centre_inside(points, scale):
    points = [[x * scale, y * scale] for x, y in points]
    side = 30 * scale + 1
    made = filled_mask(points, side, side)
    sure, near = np.zeros((side, side), bool), np.zeros((side, side), bool)
    grid_y, grid_x = np.mgrid[:side, :side]
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 != y1:  # a ray to the left crosses the edge
            crosses = (grid_y >= min(y0, y1)) & (grid_y < max(y0, y1))
            sure ^= crosses & ((grid_x - x0) * abs(y1 - y0) > (grid_y - y0) * (x1 - x0) * np.sign(y1 - y0))
        length = math.hypot(x1 - x0, y1 - y0) or 1
        t = np.clip(((grid_x - x0) * (x1 - x0) + (grid_y - y0) * (y1 - y0)) / length**2, 0, 1)
        away = np.maximum(abs(grid_x - x0 - t * (x1 - x0)), abs(grid_y - y0 - t * (y1 - y0)))
        near |= away <= 0.5
        assert made[y0, x0]
    assert not (sure & ~near & ~made).any()
    assert not (made & ~sure & ~near).any()


BAD = {
    "too few": ([[1, 1], [2, 2]], "2 points; from 3 to"),
    "none": ([], "0 points"),
    "nan": ([[1, 1], [2, 2], [math.nan, 3]], r"\(not finite\) lies outside"),
    "inf": ([[1, 1], [2, 2], [3, math.inf]], r"\(not finite\) lies outside"),
    "far": ([[1, 1], [2, 2], [21, 3]], r"point \(21, 3\) lies outside -10\.\.20 of a 10x8 image"),
    "far the other way": ([[1, 1], [2, 2], [3, -11]], r"point \(3, -11\) lies outside"),
    "absurd": ([[1, 1], [2, 2], [10**400, 3]], r"\(not finite\) lies outside"),
    "text": ([[1, 1], [2, 2], ["3", 3]], "a coordinate that is not a number"),
    "bool": ([[1, 1], [2, 2], [True, 3]], "a coordinate that is not a number"),
    "null": ([[1, 1], [2, 2], [None, 3]], "a coordinate that is not a number"),
    "too many": ([[1, 1]] * (MAX_POINTS + 1), "65537 points"),
    "too long": ([[0, 0], [9, 7]] * 2**15, "over 2097152; simplify"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_polygon_is_refused(name):
    points, message = BAD[name]
    side = 8 if name != "too long" else 80
    scaled = points if name != "too long" else [[10 * x, 10 * y] for x, y in points]
    for draw in (
        lambda: filled_mask(scaled, side, side * 10 // 8),
        lambda: coco_mask([[v for point in scaled for v in point]], side, side * 10 // 8),
    ):
        with pytest.raises(ValueError, match=message) as error:
            draw()
        assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("points", [None, "abc", {}, [1, 2, 3], [[1, 1], [2, 2], [3]], [[1, 1], [2, 2], [3, 3, 3]]])
def test_points_must_be_pairs(points):
    with pytest.raises(ValueError, match="expected a list of pairs"):
        filled_mask(points, 8, 10)


def test_coco_polygons_must_be_lists_of_even_length():
    for polygons in (None, [], {}, "abc"):
        with pytest.raises(ValueError, match="at least one"):
            coco_mask(polygons, 8, 10)
    for polygons in ([1, 2, 3, 4, 5, 6], ["abcdef"], [[1, 1, 2, 2, 3]], [None]):
        with pytest.raises(ValueError, match="polygon 0: expected x, y, x, y"):
            coco_mask(polygons, 8, 10)
    with pytest.raises(ValueError, match="polygon 1: 2 points"):
        coco_mask([[1, 1, 2, 2, 3, 3], [1, 1, 2, 2]], 8, 10)  # four numbers: pycocotools would take them for a box


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, -1), (2**31, 2**31)])
def test_the_size_is_checked_first(size):
    for draw in (filled_mask, coco_mask):
        with pytest.raises(ValueError, match="sides must be at least 1"):
            draw([[1, 1, 2, 2, 3, 3]], *size) if draw is coco_mask else draw([[1, 1]] * 3, *size)


def test_outlines_at_the_limit_take_a_moment_only():
    rng = np.random.default_rng(2)
    points = rng.integers(0, 60, (MAX_POINTS // 4, 2)).tolist()
    start = time.process_time()
    filled_mask(points, 60, 60)
    coco_mask([[v for p in points[: MAX_POINTS // 8] for v in p]], 60, 60)
    assert time.process_time() - start < 5


def test_every_form_of_a_segmentation():
    square = box(1, 4, 1, 4)
    compressed = rle.encode(square)
    runs = [9, 3, 5, 3, 5, 3, 52]  # column by column, eight to a column
    forms = (
        [[1, 1, 1, 4, 4, 4, 4, 1]],
        compressed,
        {"size": [8, 10], "counts": runs},
        [compressed],
        [{"size": [8, 10], "counts": runs}, compressed],
    )
    for form in forms:
        assert np.array_equal(segmentation_mask(form, 8, 10, "ann 1"), square)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ([], "at least one"),
        (None, "at least one"),
        ({"size": [8, 10], "counts": [81]}, "outside 0..80"),
        ({"size": [8, 10], "counts": [40, 41]}, "sum to 81"),
        ({"size": [10, 8], "counts": [80]}, r"RLE of size \[10, 8\], not the image's \[8, 10\]"),
        ({"counts": [80]}, "RLE: expected"),
        ([{"size": [8, 10], "counts": "0P"}], "truncated"),
        ([[1, 1, 2, 2, 3, 3], {"size": [8, 10], "counts": [80]}], "polygon 1: expected x, y"),
        ([[1, 1, 2, 2, 3, math.nan]], "polygon 0: point"),
    ],
)
def test_a_bad_segmentation_is_named(form, message):
    with pytest.raises(DataError, match=f"ann 1: segmentation: .*{message}.*; correct or remove the annotation"):
        segmentation_mask(form, 8, 10, "ann 1")
