"""The two-stage curriculum over mined preferences (reading R1)."""

from popen.preference.mining import Ranking

LOCALISE, REFINE = STAGES = 1, 2


def stage_at(step: int, total_steps: int, localise_share: float) -> int:
    """Stage 1 (localise) for the first share of the steps, then stage 2 (refine).

    Raises:
        ValueError: localise_share outside 0..1.
    """
    if not 0 <= localise_share <= 1:
        raise ValueError(f"localise_share = {localise_share}: the share of steps in stage 1 lies in 0..1")
    return LOCALISE if step < localise_share * total_steps else REFINE


def rejected_at(stage: int, ranking: Ranking) -> int:
    """The candidate that loses to the superior one: the inferior in stage 1, the medium in stage 2; −1 for none."""
    return ranking.inferior if stage == LOCALISE else ranking.medium
