"""Tables of the medical study: every arm, with and without flips at inference, against a control.

    python -m eval.medical_study_tables --study runs/polyps --control supervised --out docs/results/polyps

Writes OUT.json and OUT.svg and prints the table in Markdown. Arms were scored on the same cases by models from the
same bases, so differences are paired; intervals are over test cases, with the subsets as they were run.
"""

import argparse
import json
from dataclasses import astuple
from pathlib import Path

import numpy as np

from eval.charts import interval_chart
from eval.medical_arms import calibration_difference, case_values, compare_runs
from eval.medical_metrics import MedicalRow, read_medical_rows
from eval.medical_summary import POOLED, pooled_ece
from eval.paired import PairedDifference
from popen.data.safe_io import DataError, write_json
from popen.errors import one_line_errors

INFERENCES = ("single", "flips")
METRICS = ("dice", "iou", "band_dice", "nsd", "asd", "hd95")
PERCENT = ("dice", "iou", "band_dice", "nsd", "ece", "boundary_ece")


def main() -> None:
    args = parse()
    study = Path(args.study)
    runs = {way: {arm: rows_of(study, arm, way) for arm in arms_of(study)} for way in INFERENCES}
    found = {way: compared(arms, args.control) for way, arms in runs.items()}
    mined = {arm: reports_of(study, arm) for arm in runs["single"]}
    write_json(f"{args.out}.json", {"control": args.control, "arms": found, "mined": mined})
    gaps = {name: own["dice_gap"][:3] for name, own in found["single"].items() if name != args.control}
    bars = {name: tuple(100 * value for value in gap) for name, gap in gaps.items()}
    Path(f"{args.out}.svg").write_text(interval_chart(f"Dice against {args.control}, points", bars), encoding="utf-8")
    print(markdown(found, args.control))


def arms_of(study: Path) -> list[str]:
    """Arms that every subset has finished, in the order in which the first subset did.

    Raises:
        DataError: no subset in the folder, or no arm that all of them have.
    """
    subsets = sorted(study.glob("subset*"))
    done = [{file.parent.name: file.stat().st_mtime_ns for file in own.glob("*/report.json")} for own in subsets]
    if not done or not (arms := [arm for arm in sorted(done[0], key=done[0].get) if all(arm in own for own in done)]):
        raise DataError(f"{study}: no arm that all subsets have finished; run eval.medical_study first")
    return arms


def rows_of(study: Path, arm: str, way: str) -> list[list[MedicalRow]]:
    """Rows per subset."""
    return [read_medical_rows(own / arm / f"{way}.jsonl") for own in sorted(study.glob("subset*"))]


def reports_of(study: Path, arm: str) -> list[dict]:
    """What was mined, one report per subset, without the log of the training."""
    reports = [json.loads(file.read_text()) for file in sorted(study.glob(f"subset*/{arm}/report.json"))]
    return [
        own | {"rounds": [{key: value for key, value in part.items() if key != "log"} for part in own["rounds"]]}
        for own in reports
    ]


def compared(arms: dict[str, list[list[MedicalRow]]], control: str) -> dict[str, dict]:
    """Means of every arm, and its differences from the control with 95 % interval and Wilcoxon's p by Holm."""
    if control not in arms:
        raise DataError(f"control {control!r} was not run; there: {', '.join(arms)}")
    gaps = {metric: compare_runs(arms, control, metric) for metric in METRICS}
    found = {}
    for name, runs in arms.items():
        own = {metric: float(case_values(runs, metric).values_SC.mean()) for metric in METRICS} | {"n": len(runs[0])}
        own |= {calibration: pooled(runs, column) for calibration, column in POOLED.items()}
        if name != control:
            own |= {f"{metric}_gap": as_list(gaps[metric][name]) for metric in METRICS}
            own["boundary_ece_gap"] = calibration_difference(runs, arms[control], "boundary_ece")
        found[name] = own
    return found


def pooled(runs: list[list[MedicalRow]], column: str) -> float:
    """An ECE over the pixels of each run, the mean over runs; 0..1."""
    bins = [np.sum([astuple(getattr(row, column)) for row in rows], 0) for rows in runs]
    return float(np.mean([pooled_ece([own]) for own in bins]))


def as_list(gap: PairedDifference) -> list[float]:
    return [gap.difference, gap.low, gap.high, gap.p_holm]


def markdown(found: dict[str, dict], control: str) -> str:
    """A row per arm: Dice, and its gap to the control without and with flips, then the boundary's numbers."""
    head = [
        "arm", "Dice, %", f"Δ to {control}", "p", "Dice with flips", f"Δ to {control} with flips", "Δ IoU",
        "Δ band Dice", "Δ NSD", "Δ ASD, mm", "Δ HD95, mm", "Δ boundary ECE, %",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, own in found["single"].items():
        flips = found["flips"][name]
        cells = [name, f"{100 * own['dice']:.1f}", gap(own, "dice"), p_value(own)]
        cells += [f"{100 * flips['dice']:.1f}", gap(flips, "dice")]
        cells += [gap(own, metric) for metric in ("iou", "band_dice", "nsd", "asd", "hd95", "boundary_ece")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gap(own: dict, metric: str) -> str:
    if f"{metric}_gap" not in own:
        return "–"
    scale = 100 if metric in PERCENT else 1
    difference, low, high = (scale * value for value in own[f"{metric}_gap"][:3])
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def p_value(own: dict) -> str:
    """Of the Dice's difference, Wilcoxon's and Holm's."""
    if "dice_gap" not in own:
        return "–"
    p = own["dice_gap"][3]
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", required=True, help="folder that eval.medical_study wrote")
    parser.add_argument("--control", default="supervised", help="the arm that all others are compared with")
    parser.add_argument("--out", required=True, help="path of the JSON and the chart, without their endings")
    return parser.parse_args()


if __name__ == "__main__":
    with one_line_errors("eval.medical_study_tables"):
        main()
