"""Which candidate loses when."""

import pytest

from popen.preference.curriculum import LOCALISE, REFINE, STAGES, rejected_at, stage_at
from popen.preference.mining import Ranking


@pytest.mark.parametrize(
    "share, stages", [(0.5, [1, 1, 2, 2]), (0.25, [1, 2, 2, 2]), (0.3, [1, 1, 2, 2]), (0, [2] * 4), (1, [1] * 4)]
)
def test_stage_of_four_steps(share, stages):
    """Steps before share · 4 are in stage 1: 0.3 · 4 = 1.2 holds steps 0 and 1."""
    assert [stage_at(step, 4, share) for step in range(4)] == stages


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_impossible_share(share):
    with pytest.raises(ValueError, match=rf"localise_share = {share}"):
        stage_at(0, 10, share)


def test_the_inferior_loses_first_then_the_medium():
    assert STAGES == (LOCALISE, REFINE) == (1, 2)
    ranking = Ranking(superior=4, medium=2, inferior=0)
    assert rejected_at(LOCALISE, ranking) == 0 and rejected_at(REFINE, ranking) == 2
    assert rejected_at(REFINE, Ranking(4, -1, 0)) == -1
