"""Scores of a case: a row per region with overlap, surface distances and calibration, and counts of what is missing.

A region that a case lacks, or that a model misses, scores by a stated policy. Left out of a mean, a missed structure
would make the mean distance better the less a model finds.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from eval.calibration_error import Reliability, boundary_band, reliability
from eval.metrics import MaskCounts
from eval.rows import read_rows
from eval.surface_distances import asd, assd, check_masks, hd95, nsd, surface_distances
from popen.data.safe_io import DataError


@dataclass(frozen=True)
class MissingPolicy:
    """What a region scores that is empty in the truth, in the prediction or in both: never NaN, never left out.

    Overlap stands for Dice, IoU, NSD and boundary-band Dice, distance for HD95, ASD and ASSD.
    """

    both_empty_overlap: float = 1.0
    both_empty_distance: float = 0.0  # mm
    one_empty_overlap: float = 0.0
    one_empty_distance: float = 1.0  # diagonals of the picture: no two of its pixels lie farther apart


@dataclass(frozen=True)
class ScoringProtocol:
    """What a table of scores must name beside them."""

    tolerance: float = 1.0  # mm, of NSD
    band: float = 2.0  # mm to either side of the true boundary, of boundary ECE and boundary-band Dice
    missing: MissingPolicy = field(default_factory=MissingPolicy)


@dataclass(frozen=True)
class MedicalRow:
    """One region of one case. Areas in pixels, distances in mm, shares 0..1; the calibrations add up over rows."""

    case: str
    patient: str
    region: str
    intersection: int
    predicted: int
    truth: int
    dice: float
    iou: float
    hd95: float
    asd: float
    assd: float
    nsd: float
    band_dice: float
    calibration: Reliability
    boundary_calibration: Reliability

    @property
    def missed(self) -> bool:
        """The region is there, and nothing was predicted."""
        return self.truth > 0 and self.predicted == 0

    @property
    def invented(self) -> bool:
        """The region is not there, and something was predicted."""
        return self.truth == 0 and self.predicted > 0

    def as_json(self) -> dict:
        """The row as `eval.rows` writes and gathers it, with an id of its own."""
        return {"id": f"{self.case}/{self.region}"} | asdict(self)


def read_medical_rows(file: str | Path) -> list[MedicalRow]:
    """The rows of a file of JSON lines that `eval.rows.write_rows` wrote.

    Raises:
        DataError: no such file, no rows, an id twice, or a row that is no `MedicalRow`.
    """
    return [row_from_json(row, str(file)) for row in read_rows(file)]


def row_from_json(row: dict, where: str) -> MedicalRow:
    """The inverse of `MedicalRow.as_json`; DataError names `where` and the row."""
    values = {name: value for name, value in row.items() if name != "id"}
    try:
        for name in ("calibration", "boundary_calibration"):
            values[name] = Reliability(**{part: tuple(bins) for part, bins in values[name].items()})
        return MedicalRow(**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: row {row['id']!r} is no row of eval.medical ({error}); evaluate again") from None


def dice(counts: MaskCounts) -> float:
    """2 I / (|P| + |T|) = 2 I / (I + U), 0..1.

    Raises:
        ValueError: both masks are empty.
    """
    _check_union(counts)
    return 2 * counts.intersection / (counts.intersection + counts.union)


def iou(counts: MaskCounts) -> float:
    """I / U, 0..1.

    Raises:
        ValueError: both masks are empty.
    """
    _check_union(counts)
    return counts.intersection / counts.union


def diagonal(shape: tuple[int, ...], spacing: tuple[float, ...]) -> float:
    """The largest distance between the centres of two pixels of a picture, mm; an axis of one pixel adds nothing."""
    return math.hypot(*((size - 1) * s for size, s in zip(shape, spacing, strict=True)))


def score_case(
    probabilities: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, ...],
    threshold: float,
    regions: Sequence[str],
    case: str,
    patient: str,
    protocol: ScoringProtocol | None = None,
) -> list[MedicalRow]:
    """A row per region of a case whose regions are independent: a pixel belongs where its probability is above.

    Args:
        probabilities: float in 0..1 (K, *spatial). threshold: a probability. Otherwise as `score_masks`.
    Raises:
        ValueError: as `score_masks`.
    """
    return score_masks(probabilities > threshold, probabilities, truth, spacing, regions, case, patient, protocol)


def score_masks(
    predicted: np.ndarray,
    probabilities: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, ...],
    regions: Sequence[str],
    case: str,
    patient: str,
    protocol: ScoringProtocol | None = None,
) -> list[MedicalRow]:
    """A row per region of a case whose masks are decided elsewhere, say by the likeliest class.

    Args:
        predicted, truth: bool (K, *spatial), 2-D or 3-D, without the background. probabilities: float in 0..1, alike.
        spacing: mm between pixels along each axis; (1, 1) makes every mm below a pixel. regions: K names.
        protocol: None for the defaults.
    Raises:
        ValueError: shapes, number of names, types, spacing or probabilities do not fit; names case and region.
    """
    if not predicted.shape == probabilities.shape == truth.shape or len(regions) != len(truth):
        raise ValueError(
            f"{case}: predicted {predicted.shape}, probabilities {probabilities.shape}, truth {truth.shape} and "
            f"{len(regions)} regions differ in size"
        )
    rows = []
    for k, name in enumerate(regions):
        try:
            own = predicted[k], probabilities[k], truth[k]
            rows.append(score_region(*own, spacing, name, case, patient, protocol or ScoringProtocol()))
        except ValueError as error:
            raise ValueError(f"{case}, {name}: {error}") from None
    return rows


def score_region(
    predicted: np.ndarray,
    probabilities: np.ndarray,
    truth: np.ndarray,
    spacing: tuple[float, ...],
    region: str,
    case: str,
    patient: str,
    protocol: ScoringProtocol,
) -> MedicalRow:
    """The row of one region; arguments without the axis K, errors as `score_masks`."""
    check_masks(predicted, truth, spacing)
    band = boundary_band(truth, spacing, protocol.band)
    counts = _counts(predicted, truth)
    area, true_area = int(predicted.sum()), int(truth.sum())
    if area and true_area:
        apart = surface_distances(predicted, truth, spacing)
        overlaps = {"dice": dice(counts), "iou": iou(counts), "nsd": nsd(apart, protocol.tolerance)}
        overlaps["band_dice"] = dice(_counts(predicted[band], truth[band])) if band.any() else overlaps["dice"]
        distances = {"hd95": hd95(apart), "asd": asd(apart), "assd": assd(apart)}
    else:
        missing = protocol.missing
        one = area or true_area
        overlap = missing.one_empty_overlap if one else missing.both_empty_overlap
        distance = missing.one_empty_distance * diagonal(truth.shape, spacing) if one else missing.both_empty_distance
        overlaps = dict.fromkeys(("dice", "iou", "nsd", "band_dice"), overlap)
        distances = dict.fromkeys(("hd95", "asd", "assd"), distance)
    return MedicalRow(
        case, patient, region, counts.intersection, area, true_area, **overlaps, **distances,
        calibration=reliability(probabilities, truth),
        boundary_calibration=reliability(probabilities[band], truth[band]),
    )  # fmt: skip


def _counts(predicted: np.ndarray, truth: np.ndarray) -> MaskCounts:
    return MaskCounts(int((predicted & truth).sum()), int((predicted | truth).sum()))


def _check_union(counts: MaskCounts) -> None:
    if counts.union == 0:
        raise ValueError("two empty masks have no overlap; score them by the policy for missing regions")
