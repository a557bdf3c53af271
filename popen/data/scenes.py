"""Rendered scenes of coloured household-like things, with the scene graph that drew them.

A seed is a scene: its things, their places and every pixel follow from it. So masks and answers are exact, and an
object named in an answer is hallucinated exactly when no thing has that name. Lengths below are in pixels of a
96-pixel image and grow with the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SPLIT_SEEDS = {
    "train": range(0, 900_000),
    "calibration": range(900_000, 1_000_000),  # thresholds and ensemble settings are chosen here, nothing is reported
    "dev": range(1_000_000, 1_100_000),
    "test": range(2_000_000, 2_100_000),
}
COLOURS = {
    "red": (206, 36, 40),
    "orange": (242, 116, 20),
    "yellow": (248, 224, 56),
    "green": (56, 152, 52),
    "teal": (42, 186, 182),
    "blue": (40, 76, 208),
    "purple": (124, 52, 172),
    "pink": (246, 138, 188),
}
# each silhouette with the reach of its farthest point from its centroid, in half sizes, and its largest tilt
SHAPES = {
    "ball": (1.00, 0.0),
    "ring": (1.00, 0.0),
    "box": (1.21, 0.3),
    "plank": (1.42, 0.6),
    "cone": (1.21, 0.25),
    "star": (1.15, 0.6),
    "cross": (1.10, 0.25),
    "bowl": (1.27, 0.2),
}
TEXTURES = ("plain", "striped", "dotted")
NAMES = frozenset(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
HOLE = 0.6  # radius of a ring's hole, in half sizes
VISIBLE_SHARE = 0.75
VISIBLE_AREA = 60
BASE_SIZE = 96
_TAG = 0x5CE7E  # keeps these random streams apart from others that start from the same seed
_GRID = 6


@dataclass(frozen=True, eq=False)
class Thing:
    """One thing: centroid (x, y) and size (about its diameter) in pixels, angle in radians, visible bool (H, W)."""

    colour: str
    shape: str
    texture: str
    centre: tuple[float, float]
    size: float
    angle: float
    mask: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, eq=False)
class Scene:
    """An image uint8 (H, W, 3) and the things in it, from back to front."""

    seed: int
    image: np.ndarray
    things: tuple[Thing, ...]


@dataclass(frozen=True, eq=False)
class _Placed:
    colour: str
    shape: str
    texture: str
    x: float
    y: float
    size: float
    angle: float
    window: tuple[slice, slice]
    coverage: np.ndarray  # of the window, 0..1


def draw_scene(seed: int, size: int = BASE_SIZE) -> Scene:
    """Draw the scene of a seed: 3 to 6 things, each at least three quarters visible.

    Args:
        seed: not negative; `SPLIT_SEEDS` says which split may use it.
        size: side of the square image in pixels, at least 48.
    Returns:
        The scene; its masks are disjoint and hold the pixels that the thing covers by half or more after occlusion.
    Raises:
        ValueError: a negative seed, or an image too small for the silhouettes to be told apart.
    """
    if seed < 0 or size < 48:
        raise ValueError(f"scene: seed {seed} must be 0 or more and size {size} at least 48 pixels")
    rng = np.random.default_rng([_TAG, seed])
    placed: list[_Placed] = []
    visible: list[np.ndarray] = []
    while len(placed) < 3:  # a crowded start can leave no room for a third thing
        placed, visible = _layout(rng, size)
    canvas = _background(rng, size)
    for item in placed:
        _paint(canvas, item, rng, size)
    sigma = rng.uniform(4, 12)
    canvas += sigma * rng.standard_normal(canvas.shape, dtype=np.float32)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    things = tuple(
        Thing(p.colour, p.shape, p.texture, (p.x, p.y), p.size, p.angle, mask)
        for p, mask in zip(placed, _masks(visible), strict=True)
    )
    return Scene(seed, image, things)


def silhouette(
    shape: str, centre: tuple[float, float], size: float, angle: float, side: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Cover the pixels of a (side, side) image with one unoccluded silhouette.

    Args:
        shape: one of SHAPES; centre, size, angle: as in `Thing`.
    Returns:
        The window (rows, columns) that holds it, and the coverage there, float32 in 0..1.
    """
    half = size / 2
    reach = SHAPES[shape][0] * half + 1
    x, y = centre
    rows = slice(max(int(y - reach), 0), min(int(y + reach) + 2, side))
    columns = slice(max(int(x - reach), 0), min(int(x + reach) + 2, side))
    u, v = _local(x, y, half, angle, rows, columns)
    coverage = np.clip(0.5 - half * _distance(shape, u, v), 0, 1)  # antialiased over one pixel
    return (rows, columns), coverage.astype(np.float32)


def _local(x: float, y: float, half: float, angle: float, rows: slice, columns: slice) -> tuple[np.ndarray, ...]:
    """Coordinates of pixel centres in the thing's own frame, in half sizes; v points down."""
    dx = (np.arange(columns.start, columns.stop)[None, :] + 0.5 - x) / half
    dy = (np.arange(rows.start, rows.stop)[:, None] + 0.5 - y) / half
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * dx + sin * dy, cos * dy - sin * dx


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the silhouette's edge, negative inside, in half sizes; the centroid is the origin."""
    if shape == "ball":
        return np.hypot(u, v) - 1
    if shape == "ring":
        radius = np.hypot(u, v)
        return np.maximum(radius - 1, HOLE - radius)
    if shape == "box":
        return np.maximum(np.abs(u), np.abs(v)) - 0.85
    if shape == "plank":
        return np.maximum(np.abs(u) - 1.36, np.abs(v) - 0.38)
    if shape == "cone":  # base 1.8 wide, 1.8 high; apex up
        slant = (2 * np.abs(u) - (v + 1.2)) / np.sqrt(5)
        return np.maximum(slant, v - 0.6)
    if shape == "star":  # folded to one half of one point
        turn = 2 * np.pi / 5
        around = np.arctan2(u, -v)
        fold = np.abs(around - turn * np.rint(around / turn))
        radius = np.hypot(u, v)
        along, across = radius * np.cos(fold), radius * np.sin(fold)
        inner = 0.52
        edge = np.array([inner * np.cos(turn / 2) - 1.15, inner * np.sin(turn / 2)])
        edge /= np.hypot(*edge)
        return (along - 1.15) * edge[1] - across * edge[0]
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 1.04, b - 0.35), np.maximum(b - 1.04, a - 0.35))
    if shape == "bowl":  # lower half of a disc of radius 1.15; its centroid lies 4/3π radii below the rim
        below = v + 1.15 * 4 / (3 * np.pi)
        return np.maximum(np.hypot(u, below) - 1.15, -below)
    raise ValueError(f"shape {shape!r}: choose from {', '.join(SHAPES)}")


def _layout(rng: np.random.Generator, side: int) -> tuple[list[_Placed], list[np.ndarray]]:
    """Place things back to front; returns them and the coverage (side, side) left of each."""
    unit = side / BASE_SIZE
    placed: list[_Placed] = []
    visible: list[np.ndarray] = []
    enclosing = rng.random() < 0.1
    for name in _names(rng, enclosing):
        colour, shape = name.split()
        for _ in range(20):
            reach, tilt = SHAPES[shape]
            length = unit * rng.uniform(15, 34)
            if enclosing and len(placed) == 0:
                length = unit * rng.uniform(42, 50)
            angle = rng.uniform(-tilt, tilt) if tilt else 0.0
            if enclosing and len(placed) == 1:  # into the hole, clear of its edge
                ring = placed[0]
                length = unit * rng.uniform(15, 19)
                slack = max(HOLE * ring.size / 2 - reach * length / 2 - unit, 0)
                way = rng.uniform(0, 2 * np.pi)
                x, y = ring.x + slack * np.cos(way), ring.y + slack * np.sin(way)
            else:
                edge = reach * length / 2 + unit
                x, y = rng.uniform(edge, side - edge, 2)
            # most things stand apart; without this the picture is a pile
            near = 0.75 if rng.random() < 0.35 else 1.05
            if not (enclosing and len(placed) == 1) and any(
                np.hypot(x - p.x, y - p.y) < near * (reach * length + SHAPES[p.shape][0] * p.size) / 2 for p in placed
            ):
                continue
            window, coverage = silhouette(shape, (float(x), float(y)), length, angle, side)
            left = [layer.copy() for layer in visible]
            for layer in left:
                layer[window] *= 1 - coverage
            if all(_seen(layer, p, unit) for layer, p in zip(left, placed, strict=True)):
                texture = str(rng.choice(TEXTURES, p=(0.6, 0.2, 0.2)))
                placed.append(_Placed(colour, shape, texture, float(x), float(y), length, angle, window, coverage))
                own = np.zeros((side, side), np.float32)
                own[window] = coverage
                visible = [*left, own]
                break
    return placed, visible


def _seen(layer: np.ndarray, item: _Placed, unit: float) -> bool:
    area = np.count_nonzero(layer[item.window] > 0.5)
    whole = np.count_nonzero(item.coverage >= 0.5)
    return bool(area >= VISIBLE_SHARE * whole and area >= VISIBLE_AREA * unit**2)


def _names(rng: np.random.Generator, enclosing: bool) -> Iterator[str]:
    """Names of 3 to 6 things; later ones often share the colour or the shape of an earlier one."""
    colours, shapes = list(COLOURS), list(SHAPES)
    count = int(rng.integers(3, 7))
    twin = count - 1 if rng.random() < 0.05 else None
    names: list[str] = []
    while len(names) < count:
        if len(names) == twin:
            names.append(names[rng.integers(int(enclosing), len(names))])
            continue
        colour, shape = colours[rng.integers(len(colours))], shapes[rng.integers(len(shapes))]
        if not names and enclosing:
            shape = "ring"
        if names:
            earlier = names[rng.integers(len(names))].split()
            draw = rng.random()
            if draw < 0.3:
                colour = earlier[0]
            elif draw < 0.6:
                shape = earlier[1]
            if enclosing and shape in ("ring", "plank") and len(names) == 1:
                continue  # a ring in a ring has two holes; a plank does not fit
        if f"{colour} {shape}" not in names:
            names.append(f"{colour} {shape}")
    yield from names


def _masks(visible: list[np.ndarray]) -> list[np.ndarray]:
    """Pixels covered by half or more; one shared exactly by half goes to the thing in front."""
    masks: list[np.ndarray] = []
    taken = np.zeros(visible[0].shape, np.bool_)
    for layer in reversed(visible):
        masks.append((layer >= 0.5) & ~taken)
        taken |= masks[-1]
    return masks[::-1]


@lru_cache(maxsize=8)
def _bilinear(side: int) -> np.ndarray:
    """Weights (side, _GRID) that stretch a coarse grid over the image."""
    at = np.linspace(0, _GRID - 1, side)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(_GRID))).astype(np.float32)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Grey or brownish gradient with slow blotches, float32 (side, side, 3)."""
    grey = rng.uniform(70, 190)
    warmth = rng.uniform(0, 0.14)
    tone = grey * np.array([1 + warmth, 1, 1 - 1.3 * warmth])
    grid = rng.normal(0, 5, (_GRID, _GRID))
    slope = rng.uniform(-5, 5, 2)
    steps = np.arange(_GRID) - (_GRID - 1) / 2
    grid += slope[0] * steps[:, None] + slope[1] * steps
    weights = _bilinear(side)
    light = weights @ grid.astype(np.float32) @ weights.T
    return tone.astype(np.float32) + light[..., None]


def _paint(canvas: np.ndarray, item: _Placed, rng: np.random.Generator, side: int) -> None:
    """Blend one thing over what is behind it, in place."""
    unit, half = side / BASE_SIZE, item.size / 2
    colour = np.array(COLOURS[item.colour]) * rng.uniform(0.92, 1.05) + rng.normal(0, 3.5, 3)
    u, v = _local(item.x, item.y, half, item.angle, *item.window)
    light = 1 - rng.uniform(0.03, 0.12) * (u + v)  # lit from the upper left of the thing
    phase = rng.uniform(0, 1, 2)
    if item.texture == "striped":
        period = 6 * unit / half
        light = light * np.where((u + v) / np.sqrt(2) / period % 1 < 0.5, 0.64, 1.0)
    elif item.texture == "dotted":
        period = 6 * unit / half
        du, dv = (u / period + phase[0]) % 1 - 0.5, (v / period + phase[1]) % 1 - 0.5
        light = light * (1 - 0.45 * np.clip(6 * (0.36 - np.hypot(du, dv)), 0, 1))
    alpha = item.coverage[..., None]
    painted = (colour * light[..., None]).astype(np.float32)
    canvas[item.window] += alpha * (painted - canvas[item.window])
