"""Whether probabilities of foreground come true: ECE over all pixels, or over those near the true boundary.

Bins hold integers, so that cases, chunks and processes add up to the same number in whatever order they come.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from eval.surface_distances import bounding_box, check_spacing

BINS = 15
UNITS = 2**24  # probabilities are summed in these: what float32 resolves next to 1, and exact for 2²⁹ pixels a mask


@dataclass(frozen=True)
class Reliability:
    """Per bin of equal width in 0..1: pixels, their probabilities of foreground in 1/UNITS, and true foreground."""

    pixels: tuple[int, ...] = (0,) * BINS
    probability: tuple[int, ...] = (0,) * BINS
    foreground: tuple[int, ...] = (0,) * BINS

    def __add__(self, other: "Reliability") -> "Reliability":
        add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))  # noqa: E731
        return Reliability(
            add(self.pixels, other.pixels),
            add(self.probability, other.probability),
            add(self.foreground, other.foreground),
        )


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> Reliability:
    """Counts of any number of pixels; bin b holds probabilities from b / 15 up to (b + 1) / 15, the last also 1.

    Args:
        probabilities: of foreground, float in 0..1. truth: bool of the same shape.
    Raises:
        ValueError: shapes differ, truth is not bool, or a probability is outside 0..1 or NaN.
    """
    if probabilities.shape != truth.shape:
        raise ValueError(f"probabilities {probabilities.shape} and truth {truth.shape} differ in size")
    if truth.dtype != bool:
        raise ValueError(f"truth must be bool, not {truth.dtype}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in 0..1 and not be NaN; put logits through the activation first")
    flat = probabilities.astype(np.float64).ravel()
    bins = np.minimum((flat * BINS).astype(np.int64), BINS - 1)
    count = lambda weights: tuple(int(n) for n in np.bincount(bins, weights, minlength=BINS))  # noqa: E731
    return Reliability(count(None), count(np.rint(flat * UNITS)), count(truth.ravel()))


def ece(counts: Reliability) -> float:
    """Expected calibration error, 0..1.

    ECE = Σ_b n_b / N · |mean probability in b − share of foreground in b|

    The binary form on the probability of foreground (Naeini et al. 2015), not on that of the likelier label. Over all
    pixels easy background dilutes it; near the boundary nothing does.

    Raises:
        ValueError: no pixels.
    """
    total = sum(counts.pixels)
    if total == 0:
        raise ValueError("no pixels to calibrate on; add up the counts of at least one case")
    gaps = zip(counts.probability, counts.foreground, strict=True)
    return sum(abs(probability - foreground * UNITS) for probability, foreground in gaps) / (total * UNITS)


def boundary_band(truth: np.ndarray, spacing: tuple[float, ...], width: float) -> np.ndarray:
    """The pixels at most `width` mm from one of the other label, centre to centre: as many layers inside as outside.

    The picture's edge is no boundary: what lies beyond is not known. Without both labels the band is empty.

    Args:
        truth: bool (*spatial). spacing: mm along each axis. width: mm.
    Returns:
        bool (*spatial).
    Raises:
        ValueError: truth is not bool, spacing does not fit, or the width is not finite or reaches no neighbour.
    """
    if truth.dtype != bool:
        raise ValueError(f"truth must be bool, not {truth.dtype}")
    check_spacing(truth.shape, spacing)
    steps = [s for s, size in zip(spacing, truth.shape, strict=True) if size > 1] or list(spacing)
    if not min(steps) <= width < np.inf:
        raise ValueError(f"a band of {width} mm holds no pixel at a spacing of {spacing} mm; widen it")
    band = np.zeros_like(truth)
    if not truth.any() or truth.all():
        return band
    near = tuple(  # the box in which all of the band and all it is measured from lies
        slice(max(side.start - int(width / s) - 1, 0), side.stop + int(width / s) + 1)
        for side, s in zip(bounding_box(truth), spacing, strict=True)
    )
    part = truth[near]
    inwards, outwards = (ndimage.distance_transform_edt(mask, spacing) for mask in (part, ~part))
    band[near] = inwards + outwards <= width  # one of the two is 0
    return band
