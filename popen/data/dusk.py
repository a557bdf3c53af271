"""Pictures as a small sensor takes them at dusk: a domain that a model trained on clean scenes has not seen."""

import numpy as np
from scipy.ndimage import gaussian_filter

CAST = (0.8, 0.9, 1.2)  # the light is bluer
READ_NOISE = 0.02  # of the full range


def at_dusk(picture_HWC: np.ndarray, seed: int, light: float = 0.3, blur: float = 0.8) -> np.ndarray:
    """The picture in little light: blurred, dim, bluer, with shot noise and read noise; deterministic from a seed.

    Args:
        picture_HWC: uint8 (H, W, 3). light: share of the light that is left, in (0, 1]; the fewer photons, the more
            noise. blur: σ in pixels, 0 or more.
    Returns:
        uint8 (H, W, 3).
    Raises:
        ValueError: light or blur out of range.
    """
    if not 0 < light <= 1 or blur < 0:
        raise ValueError(f"light = {light}, blur = {blur}: give light in (0, 1] and blur of 0 or more")
    rng = np.random.default_rng(seed)
    scene = gaussian_filter(picture_HWC.astype(np.float32) / 255, (blur, blur, 0)) * light * np.asarray(CAST)
    photons = 100  # at full light, per channel: what makes shot noise visible
    seen = rng.poisson(scene * photons) / photons + rng.normal(0, READ_NOISE, scene.shape)
    return np.clip(np.rint(255 * seen), 0, 255).astype(np.uint8)
