"""Arms of a medical study beside a control that scored the same cases: differences of means and of calibration."""

import numpy as np

from eval.medical_metrics import MedicalRow
from eval.medical_summary import MEANS, POOLED, pooled_ece
from eval.metrics import bootstrap_interval
from eval.paired import CaseValues, PairedDifference, compare_arms


def compare_runs(
    arms: dict[str, list[list[MedicalRow]]], control: str, metric: str, seed: int = 0
) -> dict[str, PairedDifference]:
    """Every arm against the control by one of `MEANS`, a case counting with the mean over its regions.

    Args:
        arms: rows per arm and training seed.
    Raises:
        ValueError: another metric, no such control, or seeds and arms that were scored on different cases.
    """
    return compare_arms({name: case_values(runs, metric) for name, runs in arms.items()}, control, seed)


def case_values(runs: list[list[MedicalRow]], metric: str) -> CaseValues:
    """One number per seed and case: the mean of the metric over the case's regions, cases sorted by name.

    Raises:
        ValueError: a metric that is none of `MEANS`, no runs, or seeds that were scored on different cases.
    """
    if metric not in MEANS:
        raise ValueError(f"no metric {metric!r} of a case; there: {', '.join(MEANS)}")
    _check_alike(runs)
    patients = {row.case: row.patient for row in runs[0]}
    cases = tuple(sorted(patients))
    values = []
    for rows in runs:
        of_case: dict[str, list[float]] = {case: [] for case in cases}
        for row in rows:
            of_case[row.case].append(getattr(row, metric))
        values.append([float(np.mean(of_case[case])) for case in cases])
    return CaseValues(cases, tuple(patients[case] for case in cases), np.array(values))


def calibration_difference(
    arm: list[list[MedicalRow]], control: list[list[MedicalRow]], name: str, seed: int = 0, draws: int = 1000
) -> tuple[float, float, float]:
    """Arm minus control in "ece" or "boundary_ece", and the 95 % interval over patients; seeds are kept.

    An ECE is pooled over the pixels of a run and averaged over seeds; the same patients are drawn for both arms.

    Raises:
        ValueError: another name, runs on different cases, or no case with a boundary.
    """
    if name not in POOLED:
        raise ValueError(f"no calibration {name!r}; there: {', '.join(POOLED)}")
    if len(arm) != len(control):
        raise ValueError(f"the arm has {len(arm)} seeds and the control {len(control)}; run as many of both")
    _check_alike([*arm, *control])
    bins: dict[str, np.ndarray] = {}
    for number, rows in enumerate([*arm, *control]):
        for row in rows:
            counts = getattr(row, POOLED[name])
            own = bins.setdefault(row.patient, np.zeros((len(arm) + len(control), 3, len(counts.pixels)), np.int64))
            own[number] += np.array([counts.pixels, counts.probability, counts.foreground])
    groups = [own for _, own in sorted(bins.items()) if own[0, 0].any()]  # the truth decides: alike in every run
    if not groups:
        raise ValueError("no case has a boundary; there is nothing to calibrate")

    def gap(drawn: list[np.ndarray]) -> float:
        errors = [pooled_ece([run]) for run in np.sum(drawn, 0)]
        return float(np.mean(errors[: len(arm)]) - np.mean(errors[len(arm) :]))

    return gap(groups), *bootstrap_interval(groups, gap, seed, draws)


def _check_alike(runs: list[list[MedicalRow]]) -> None:
    """ValueError unless all runs scored the same regions of the same cases of the same patients, each once."""
    scored = [sorted((row.case, row.region, row.patient) for row in rows) for rows in runs]
    if not scored or not scored[0]:
        raise ValueError("no rows to compare; score at least one case")
    if any(other != scored[0] for other in scored[1:]):
        raise ValueError("runs were scored on different cases or regions; score all on the same split")
