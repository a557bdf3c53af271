"""Numbers of a run from its rows, with intervals over patients, and the table that shows them.

Scores of a case are averaged over all cases, whatever is missing in them, and the counts of what is missing stand
beside. Calibration is pooled over pixels: an ECE of one small region is mostly noise.
"""

from dataclasses import astuple
from itertools import groupby

import numpy as np

from eval.calibration_error import Reliability, ece
from eval.medical_metrics import MedicalRow, ScoringProtocol
from eval.metrics import bootstrap_interval

MEANS = ("dice", "iou", "hd95", "asd", "assd", "nsd", "band_dice")
POOLED = {"ece": "calibration", "boundary_ece": "boundary_calibration"}
IN_MM = ("hd95", "asd", "assd")


def summarise(rows: list[MedicalRow], seed: int = 0) -> dict:
    """Numbers of each region, and of all regions together: every case weighs alike, and so do its regions.

    Returns:
        {"all": numbers, "regions": {name: numbers}}, numbers as `numbers` gives them.
    Raises:
        ValueError: no rows, or a case without one of the regions.
    """
    if not rows:
        raise ValueError("no rows to summarise; score at least one case")
    names = list(dict.fromkeys(row.region for row in rows))
    cases = {row.case for row in rows}
    for name in names:
        lacking = sorted(cases - {row.case for row in rows if row.region == name})
        if lacking:
            raise ValueError(f"{lacking[0]}: no row for the region {name}; score every region of every case")
    regions = {name: numbers([row for row in rows if row.region == name], seed) for name in names}
    return {"all": numbers(rows, seed) if len(names) > 1 else regions[names[0]], "regions": regions}


def numbers(rows: list[MedicalRow], seed: int = 0) -> dict:
    """Counts, means and calibration of rows (at least one), each with its 95 % interval over patients as `…_95`.

    `cases`, `patients`, `rows`; of the rows those `missed`, `invented` and `absent` (nothing there, nothing
    predicted). Distances in mm, the rest 0..1; boundary ECE is None where no row has a boundary.
    """
    ordered = sorted(rows, key=lambda row: (row.patient, row.case, row.region))  # the same sums from any process
    patients = [list(group) for _, group in groupby(ordered, key=lambda row: row.patient)]
    found: dict = {
        "cases": len({row.case for row in rows}),
        "patients": len(patients),
        "rows": len(rows),
        "missed": sum(row.missed for row in rows),
        "invented": sum(row.invented for row in rows),
        "absent": sum(row.truth == row.predicted == 0 for row in rows),
    }
    for name in MEANS:
        sums = [(sum(getattr(row, name) for row in group), len(group)) for group in patients]
        found[name] = _ratio(sums)
        found[f"{name}_95"] = bootstrap_interval(sums, _ratio, seed)
    for name, column in POOLED.items():
        bins = [np.sum([astuple(getattr(row, column)) for row in group], 0) for group in patients]
        bins = [counts for counts in bins if counts[0].any()]
        found[name] = pooled_ece(bins) if bins else None
        found[f"{name}_95"] = bootstrap_interval(bins, pooled_ece, seed) if bins else None
    return found


def pooled_ece(bins: list[np.ndarray]) -> float:
    """ECE of the sum of bins, whole numbers (3, 15) each: pixels, probability and foreground of a `Reliability`.

    Raises:
        ValueError: no pixels in any.
    """
    return ece(Reliability(*(tuple(part) for part in np.sum(bins, 0).tolist())))


def markdown(summary: dict, protocol: ScoringProtocol) -> str:
    """A row per region, the first for all together where there are several; brackets are intervals over patients."""
    headings = {
        "dice": "Dice, %",
        "iou": "IoU, %",
        "hd95": "HD95, mm",
        "asd": "ASD, mm",
        "assd": "ASSD, mm",
        "nsd": f"NSD at {protocol.tolerance:g} mm, %",
        "band_dice": f"Dice within {protocol.band:g} mm of the boundary, %",
        "ece": "ECE, %",
        "boundary_ece": f"ECE within {protocol.band:g} mm, %",
    }
    head = ["region", "cases", "patients", "missed", "invented", "absent", *headings.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    several = len(summary["regions"]) > 1
    shown = ({"**all**": summary["all"]} if several else {}) | summary["regions"]
    for region, found in shown.items():
        cells = [region, *(str(found[key]) for key in ("cases", "patients", "missed", "invented", "absent"))]
        cells += [_cell(found[name], found[f"{name}_95"], 1 if name in IN_MM else 100) for name in headings]
        lines.append("| " + " | ".join(cells) + " |")
    missing = protocol.missing
    lines += [
        "",
        "Means over cases; brackets: 95 % bootstrap interval over patients. Calibration is pooled over pixels. "
        "A mm is a pixel where pictures have no spacing.",
        "",
        f"Nothing is left out: a region missed or invented scores an overlap of {missing.one_empty_overlap:g} and a "
        f"distance of {missing.one_empty_distance:g} × the picture's diagonal; absent from both, "
        f"{missing.both_empty_overlap:g} and {missing.both_empty_distance:g} mm.",
    ]
    return "\n".join(lines) + "\n"


def _ratio(sums: list[tuple[float, int]]) -> float:
    total, count = np.sum(sums, 0)
    return float(total / count)


def _cell(value: float | None, interval: tuple[float, float] | None, scale: int) -> str:
    if value is None or interval is None:
        return "–"
    low, high = interval
    return f"{scale * value:.2f} [{scale * low:.2f}, {scale * high:.2f}]"
