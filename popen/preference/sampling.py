"""Ways to get several candidates from one input, each from its own seed."""

import hashlib
from dataclasses import dataclass

import numpy as np


def item_seed(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for one item, from the run's seed and the item's name; the same on every machine and order."""
    digest = hashlib.sha256("\x1f".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


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
