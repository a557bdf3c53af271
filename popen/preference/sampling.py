"""Ways to get several candidates from one input, each from its own seed."""

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch


def item_seed(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for one item, from the run's seed and the item's name; the same on every machine and order."""
    digest = hashlib.sha256("\x1f".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class View(Protocol):
    """A way to look at a picture again: uint8 (H, W, 3) to the same."""

    def apply(self, picture_HWC: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class NoiseRectangle:
    """A perturbed view stored as its recipe: rectangle in shares of the picture, noise σ in 0..1, seed."""

    left: float
    top: float
    width: float
    height: float
    sigma: float
    seed: int

    def apply(self, picture_HWC: np.ndarray) -> np.ndarray:
        """Adds Gaussian noise inside the rectangle of a uint8 picture (H, W, 3), nothing outside (POPEN, fig. 2)."""
        height, width = picture_HWC.shape[:2]
        top, left = int(self.top * height), int(self.left * width)
        bottom = min(height, top + max(round(self.height * height), 1))
        right = min(width, left + max(round(self.width * width), 1))
        view = picture_HWC.copy()
        noise = np.random.default_rng(self.seed).normal(0, 255 * self.sigma, (bottom - top, right - left, 3))
        view[top:bottom, left:right] = np.clip(view[top:bottom, left:right] + noise, 0, 255).astype(np.uint8)
        return view


@dataclass(frozen=True)
class NoiseRectangles:
    """Several rectangles in one view."""

    rectangles: tuple[NoiseRectangle, ...]

    def apply(self, picture_HWC: np.ndarray) -> np.ndarray:
        for rectangle in self.rectangles:
            picture_HWC = rectangle.apply(picture_HWC)
        return picture_HWC


@dataclass(frozen=True)
class Shift:
    """The view of `shifted`, in whole pixels."""

    right: int
    down: int

    def apply(self, picture_HWC: np.ndarray) -> np.ndarray:
        return shifted(picture_HWC, self.right, self.down)


def noise_rectangle(seed: int, min_area: float, max_area: float, sigma: float) -> NoiseRectangle:
    """One rectangle of random place and shape covering `min_area`..`max_area` of the picture (σ: reconstruction).

    Raises:
        ValueError: not 0 < min_area <= max_area < 1, or sigma <= 0.
    """
    if not 0 < min_area <= max_area < 1 or sigma <= 0:
        raise ValueError(f"noise rectangle: area {min_area}..{max_area} must lie in (0, 1), sigma {sigma} above 0")
    rng = np.random.default_rng(seed)
    area = rng.uniform(min_area, max_area)
    ratio = np.clip(np.exp(rng.uniform(-0.7, 0.7)), area, 1 / area)  # a large rectangle cannot be narrow
    width, height = min((area * ratio) ** 0.5, 1.0), min((area / ratio) ** 0.5, 1.0)
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return NoiseRectangle(float(left), float(top), float(width), float(height), sigma, int(rng.integers(2**62)))


def circle_offsets(count: int, radius: float) -> list[tuple[float, float]]:
    """`count` >= 0 offsets (right, down) evenly on a circle, the first to the right."""
    angles = [2 * math.pi * k / count for k in range(count)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def shifted(picture_HWC: np.ndarray, right: int, down: int) -> np.ndarray:
    """A view of the picture moved by whole pixels, of the same size; what comes in repeats the edge.

    A vision tower cuts a picture into patches; moved by half a patch, the same thing is cut elsewhere, and what was
    hard to tell may be easy (ours).
    """
    height, width = picture_HWC.shape[:2]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return picture_HWC[rows][:, columns]


@dataclass(frozen=True)
class BranchPoint:
    """Where an answer could have gone on otherwise: after `kept` tokens say `token`; `logp` is that beginning's."""

    kept: int
    token: int
    logp: float


def branch_points(logits_NV: torch.Tensor, ids_N: torch.Tensor, count: int, least: float) -> list[BranchPoint]:
    """The `count` likeliest ways to leave a sentence, the likeliest first (ours; beam search opens the same doors).

    Args:
        logits_NV: what predicts each token of the sentence. ids_N: the sentence.
        count: >= 0. least: leaves out beginnings less probable than this, 0..1.
    """
    logps = logits_NV.float().log_softmax(-1)
    own = logps.gather(1, ids_N[:, None])[:, 0]
    others = logps.scatter(1, ids_N[:, None], -torch.inf).topk(min(max(count, 1), logps.shape[1]), dim=1)
    total = (own.cumsum(0) - own)[:, None] + others.values
    best = total.flatten().topk(min(count, total.numel()))
    width = total.shape[1]
    return [
        BranchPoint(at // width, int(others.indices.flatten()[at]), logp)
        for logp, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        if logp >= math.log(least)
    ]
