"""Two arms on the same cases: interval of the difference, signed-rank test, and Holm's correction for several arms.

Seeds are kept as they were run: what is drawn again is patients, with all their cases, so that an interval speaks of
new patients and the same training runs.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import wilcoxon

from eval.metrics import bootstrap_interval

DIGITS = 12  # differences that agree to so many decimals are ties: beyond lies rounding


@dataclass(frozen=True)
class CaseValues:
    """One number of an arm per seed and case, (S, C), with the cases' ids and their patients."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    values_SC: np.ndarray


@dataclass(frozen=True)
class PairedDifference:
    """Arm minus control: the mean over seeds and cases, its 95 % interval over patients, and p of the signed ranks.

    `p_holm` is p corrected for how many arms were compared with the control.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    cases: int
    patients: int
    seeds: int


def paired_difference(arm: CaseValues, control: CaseValues, seed: int = 0, draws: int = 2000) -> PairedDifference:
    """One arm against a control that scored the same cases with as many seeds.

    Raises:
        ValueError: no cases, cases or patients that differ, values that do not fit them or are not finite.
    """
    for values in (arm, control):
        _check(values)
    if (arm.cases, arm.patients) != (control.cases, control.patients):
        raise ValueError("the arms were scored on different cases; score both on the same split")
    if arm.values_SC.shape != control.values_SC.shape:
        raise ValueError(
            f"the arm has {len(arm.values_SC)} seeds and the control {len(control.values_SC)}; run as many of both"
        )
    gaps_C = (arm.values_SC - control.values_SC).mean(0)
    of_patients: dict[str, list[float]] = {}
    for patient, gap in zip(arm.patients, gaps_C.tolist(), strict=True):
        of_patients.setdefault(patient, []).append(gap)
    groups = [(sum(own), len(own)) for own in of_patients.values()]
    low, high = bootstrap_interval(groups, _mean_of_cases, seed, draws)
    p = signed_rank_p(np.array([total / count for total, count in groups]))
    return PairedDifference(
        _mean_of_cases(groups), low, high, p, p, len(gaps_C), len(groups), len(arm.values_SC)
    )  # fmt: skip


def compare_arms(
    arms: dict[str, CaseValues], control: str, seed: int = 0, draws: int = 2000
) -> dict[str, PairedDifference]:
    """Every arm against the control, with p corrected for their number.

    Raises:
        ValueError: there is no such control, or what `paired_difference` refuses; names the arm.
    """
    if control not in arms:
        raise ValueError(f"no arm {control!r} to compare with; there: {', '.join(arms)}")
    found = {}
    for name, values in arms.items():
        if name != control:
            try:
                found[name] = paired_difference(values, arms[control], seed, draws)
            except ValueError as error:
                raise ValueError(f"{name} against {control}: {error}") from None
    corrected = holm({name: own.p for name, own in found.items()})
    return {name: replace(own, p_holm=corrected[name]) for name, own in found.items()}


def signed_rank_p(gaps: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that paired differences (N,) are symmetric about 0.

    Zeros are dropped (Wilcoxon 1945); 1 where nothing else is left. Exact for up to 50 differences without ties and
    13 with them, else the normal approximation.
    """
    gaps = np.round(gaps, DIGITS)
    gaps = gaps[gaps != 0]
    return float(wilcoxon(gaps).pvalue) if len(gaps) else 1.0


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979): each p times how many are not smaller, never below that of a smaller p."""
    corrected: dict[str, float] = {}
    least = 0.0
    for done, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - done) * p))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


def _mean_of_cases(groups: list[tuple[float, int]]) -> float:
    """The mean over all cases of groups of (sum, count)."""
    total, count = np.sum(groups, 0)
    return float(total / count)


def _check(values: CaseValues) -> None:
    count = len(values.cases)
    if count == 0:
        raise ValueError("no cases to compare; score at least one")
    if len(values.patients) != count or values.values_SC.ndim != 2 or values.values_SC.shape[1] != count:
        raise ValueError(
            f"{count} cases, {len(values.patients)} patients and values {values.values_SC.shape} differ; "
            "give a row per seed and a column per case"
        )
    if values.values_SC.size == 0 or not np.isfinite(values.values_SC).all():
        raise ValueError("values must be finite, of at least one seed; score missing regions by the policy")
