"""Mining: ranked candidates become superior, medium and inferior, or are dropped for a stated reason."""

from dataclasses import dataclass

TIE, NO_MEDIUM, KEPT = "tie", "no_medium", "kept"


@dataclass(frozen=True)
class Ranking:
    """Indices of the chosen candidates; `medium` is −1 where none lies clearly between the other two."""

    superior: int
    medium: int
    inferior: int


def rank(qualities: list[float], margin: float) -> tuple[Ranking | None, str]:
    """Superior = best, inferior = worst, medium = closest to their midpoint (POPEN, fig. 2; margins are ours).

    Args:
        qualities: one per candidate, higher is better. margin: least gap in quality between neighbours, > 0.
    Returns:
        the ranking and a reason: "kept"; "no_medium" (pairs only); "tie" with None where best − worst < margin.
    Raises:
        ValueError: fewer than 2 candidates, or margin <= 0.
    """
    if len(qualities) < 2 or margin <= 0:
        raise ValueError(
            f"{len(qualities)} candidates, margin {margin}: ranking needs at least 2 and a margin above 0"
        )
    order = sorted(range(len(qualities)), key=lambda i: (qualities[i], -i))
    inferior, superior = order[0], order[-1]
    best, worst = qualities[superior], qualities[inferior]
    if best - worst < margin:
        return None, TIE
    between = [i for i in order[1:-1] if best - qualities[i] >= margin and qualities[i] - worst >= margin]
    if not between:
        return Ranking(superior, -1, inferior), NO_MEDIUM
    middle = (best + worst) / 2
    return Ranking(superior, min(between, key=lambda i: abs(qualities[i] - middle)), inferior), KEPT
