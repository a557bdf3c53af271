"""Superior, medium and inferior: a table by hand, and what holds for any qualities."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.preference.mining import KEPT, NO_MEDIUM, TIE, Ranking, rank


@pytest.mark.parametrize(
    "qualities, ranking, reason",
    [
        ([0.9, 0.5, 0.1], Ranking(0, 1, 2), KEPT),
        ([0.1, 0.9, 0.5], Ranking(1, 2, 0), KEPT),
        ([0.1, 0.9, 0.75, 0.4, 0.2], Ranking(1, 3, 0), KEPT),  # the midpoint is 0.5: 0.4 is nearest
        ([0.9, 0.85, 0.1], Ranking(0, -1, 2), NO_MEDIUM),  # 0.85 is within 0.1 of the best
        ([0.9, 0.15, 0.1], Ranking(0, -1, 2), NO_MEDIUM),
        ([0.9, 0.1], Ranking(0, -1, 1), NO_MEDIUM),
        ([0.5, 0.55, 0.52], None, TIE),
        ([0.5, 0.5], None, TIE),
        ([0.75, 0.5, 0.25, 0.75], Ranking(0, 1, 2), KEPT),  # two best: the first, the clean one if it is among them
        ([0.75, 0.25, 0.25], Ranking(0, -1, 2), NO_MEDIUM),  # two worst: the last
        ([1.0, 0.875, 0.125, 0.0, 0.5], Ranking(0, 4, 3), KEPT),
        ([0.5, 0.375, 0.25], Ranking(0, 1, 2), KEPT),  # a gap of just the margin, 0.125, is enough
    ],
)
def test_rank_by_hand(qualities, ranking, reason):
    margin = 0.125 if qualities == [0.5, 0.375, 0.25] else 0.1
    assert rank(qualities, margin) == (ranking, reason)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.sampled_from([0.01, 0.05, 0.25]))
def test_what_holds_for_any_qualities(qualities, margin):
    ranking, reason = rank(qualities, margin)
    best, worst = max(qualities), min(qualities)
    if best - worst < margin:
        assert ranking is None and reason == TIE
        return
    assert qualities[ranking.superior] == best and qualities[ranking.inferior] == worst
    clear = [i for i, q in enumerate(qualities) if best - q >= margin and q - worst >= margin]
    if reason == NO_MEDIUM:
        assert ranking.medium == -1 and not clear
    else:
        assert reason == KEPT and ranking.medium in clear
        middle = (best + worst) / 2
        assert abs(qualities[ranking.medium] - middle) == min(abs(qualities[i] - middle) for i in clear)


@pytest.mark.parametrize("qualities, margin", [([0.5], 0.1), ([], 0.1), ([0.1, 0.9], 0), ([0.1, 0.9], -1)])
def test_impossible_rankings(qualities, margin):
    with pytest.raises(ValueError, match=rf"{len(qualities)} candidates, margin {margin}: ranking needs"):
        rank(qualities, margin)
