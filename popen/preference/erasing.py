"""A picture without some of its things: what is left to name says whether an answer named them all."""

import numpy as np
from scipy.ndimage import distance_transform_cdt

GROWN, RING = 1 / 32, 1 / 24  # of the picture's larger side: an edge is never quite where the mask says


def erased(picture_HWC: np.ndarray, mask_HW: np.ndarray, seed: int) -> np.ndarray:
    """Fills the masked pixels, and a rim around them, with the colour and the noise of their surroundings (ours).

    The fill is the median of a ring around the rim plus Gaussian noise of the ring's spread, 1.48 times the median
    absolute deviation per channel, so that other things in the ring do not count.

    Args:
        picture_HWC: uint8 (H, W, 3). mask_HW: bool; an empty one changes nothing, where it leaves nothing around it
            the whole picture's median and spread are taken. seed: of the noise.
    Returns:
        uint8 (H, W, 3).
    Raises:
        ValueError: the mask is not of the picture's size.
    """
    if mask_HW.shape != picture_HWC.shape[:2]:
        raise ValueError(f"the mask is {mask_HW.shape}, the picture {picture_HWC.shape[:2]}; give them one size")
    if not mask_HW.any():
        return picture_HWC
    side = max(mask_HW.shape)
    rim, ring_width = max(round(GROWN * side), 1), max(round(RING * side), 1)
    steps = distance_transform_cdt(~mask_HW, "taxicab")  # a dilation by n crosses reaches n steps, for any n at once
    grown = steps <= rim
    ring = ~grown & (steps <= rim + ring_width)
    around = (picture_HWC[ring] if ring.any() else picture_HWC.reshape(-1, 3)).astype(np.float64)
    middle = np.median(around, 0)
    spread = 1.4826 * np.median(np.abs(around - middle), 0)
    noise = np.random.default_rng(seed).standard_normal((int(grown.sum()), 3))
    view = picture_HWC.copy()
    view[grown] = np.clip(np.rint(middle + spread * noise), 0, 255).astype(np.uint8)
    return view
