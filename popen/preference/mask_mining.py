"""From K judged candidates of a picture to one preference pair, or none for a stated reason.

A strategy takes the qualities, higher is better, and gives the indices (chosen, rejected). Ties are broken by index.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from popen.preference.mining import KEPT, TIE

EQUAL = "equal"  # all candidates are the same mask
Pair = tuple[int, int]


@dataclass(frozen=True)
class Mined:
    """The pair of a picture and "kept", or None and why: "tie" (gap below the margin) or "equal"."""

    pair: Pair | None
    reason: str


def best_against_worst(qualities: Sequence[float], margin: float) -> Mined:
    """The best against the worst candidate that is at least `margin` below it (MAPO; reconstruction)."""
    order = _best_first(qualities)
    return _kept(qualities, order[0], order[-1], margin)


def best_against_random(qualities: Sequence[float], margin: float, seed: int) -> Mined:
    """The best against any candidate at least `margin` below it (RN-DPO's menu; reconstruction)."""
    order = _best_first(qualities)
    below = [i for i in order[1:] if _gap(qualities, order[0], i) >= margin and qualities[i] < qualities[order[0]]]
    return Mined((order[0], random.Random(seed).choice(below)), KEPT) if below else Mined(None, TIE)


def best_against_bottom(qualities: Sequence[float], margin: float, seed: int, share: float = 0.25) -> Mined:
    """The best against a random one of the lowest `share` of candidates, at least one (reconstruction)."""
    order = _best_first(qualities)
    bottom = order[-max(1, round(share * len(order))) :]
    return _kept(qualities, order[0], random.Random(seed).choice(bottom), margin)


def random_ordered(qualities: Sequence[float], margin: float, seed: int) -> Mined:
    """Two random candidates, in the judge's order (reconstruction)."""
    first, second = random.Random(seed).sample(range(len(_checked(qualities))), 2)
    better, worse = (first, second) if qualities[first] >= qualities[second] else (second, first)
    return _kept(qualities, better, worse, margin)


def any_beyond_margin(qualities: Sequence[float], margin: float, seed: int) -> Mined:
    """A random pair of all those whose gap is at least `margin` (margin-filtered; reconstruction)."""
    order = _best_first(qualities)
    clear = [
        (i, j)
        for at, i in enumerate(order)
        for j in order[at + 1 :]
        if _gap(qualities, i, j) >= margin and qualities[i] > qualities[j]
    ]
    return Mined(random.Random(seed).choice(clear), KEPT) if clear else Mined(None, TIE)


def quantiles(qualities: Sequence[float], margin: float, high: float = 0.75, low: float = 0.25) -> Mined:
    """The candidates at two quantiles of quality: less extreme than best and worst (reconstruction)."""
    order = _best_first(qualities)[::-1]
    last = len(order) - 1
    return _kept(qualities, order[round(high * last)], order[round(low * last)], margin)


def most_disagreement(qualities: Sequence[float], margin: float, masks: torch.Tensor) -> Mined:
    """Of all pairs beyond the margin the one whose masks, bool (K, C, *spatial), differ in most pixels."""
    flat = masks.flatten(1).float()
    on = flat.sum(1)
    differing = on[:, None] + on[None] - 2 * flat @ flat.T
    order = _best_first(qualities)
    clear = [
        (float(differing[i, j]), -i, -j, i, j)
        for at, i in enumerate(order)
        for j in order[at + 1 :]
        if _gap(qualities, i, j) >= margin and qualities[i] > qualities[j]
    ]
    return Mined(max(clear)[3:], KEPT) if clear else Mined(None, TIE)


def all_equal(masks: torch.Tensor) -> bool:
    """Whether K candidates, (K, ...), are one mask: there is nothing to prefer."""
    return bool((masks == masks[:1]).all())


def gap_distribution(gaps: Sequence[float]) -> str:
    """Best − worst over pictures in one line, for the error when a margin leaves no pair."""
    if not len(gaps):
        return "no picture has two different candidates"
    found = torch.tensor(list(gaps), dtype=torch.float64).quantile(torch.tensor([0, 0.5, 0.9, 1], dtype=torch.float64))
    low, middle, high, most = found.tolist()
    return f"gaps between best and worst: least {low:.3f}, median {middle:.3f}, 90 % {high:.3f}, largest {most:.3f}"


def _checked(qualities: Sequence[float]) -> Sequence[float]:
    if len(qualities) < 2:
        raise ValueError(f"{len(qualities)} candidates: a pair needs at least 2")
    return qualities


def _best_first(qualities: Sequence[float]) -> list[int]:
    return sorted(range(len(_checked(qualities))), key=lambda i: (-qualities[i], i))


def _gap(qualities: Sequence[float], better: int, worse: int) -> float:
    return float(qualities[better] - qualities[worse])


def _kept(qualities: Sequence[float], better: int, worse: int, margin: float) -> Mined:
    if margin < 0:
        raise ValueError(f"margin = {margin}: the least gap in quality cannot be negative")
    if better == worse or _gap(qualities, better, worse) < margin or qualities[better] == qualities[worse]:
        return Mined(None, TIE)
    return Mined((better, worse), KEPT)
