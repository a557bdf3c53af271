"""The preferred answer: values by hand, and a margin that is found again."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from popen.preference.answers import answer_scores, best_margin, preferred_answer


def test_scores_by_hand():
    """Means −1, −0.75, −2 over views; nothing is left with certainty, hardly, and with certainty."""
    logps = torch.tensor([[-0.5, -1.5], [-1.0, -0.5], [-2.0, -2.0]])
    scores = answer_scores(logps, torch.tensor([0.0, -4.0, 0.0]))
    assert scores.tolist() == [-1.0, -4.75, -2.0]
    assert preferred_answer(scores, 0.0) == 0
    assert preferred_answer(answer_scores(logps, torch.zeros(3)), 0.0) == 1  # where that says nothing, the views do
    assert preferred_answer(answer_scores(logps, torch.tensor([-4.0, -4.0, 0.0])), 0.0) == 2


def test_the_own_answer_has_a_head_start():
    scores = torch.tensor([-1.0, -0.75])
    assert preferred_answer(scores, 0.2) == 1
    assert preferred_answer(scores, 0.25) == 0  # a tie is the own answer's
    assert preferred_answer(scores, math.inf) == 0
    assert scores.tolist() == [-1.0, -0.75]


@pytest.mark.parametrize(
    ("scores", "margin"), [(torch.zeros(0), 0.0), (torch.zeros(2, 1), 0.0), (torch.zeros(2), -0.1)]
)
def test_nothing_to_choose_from_is_an_error(scores, margin):
    with pytest.raises(ValueError, match="margin >= 0"):
        preferred_answer(scores, margin)


@pytest.mark.parametrize(
    ("logps", "left"),
    [(torch.zeros(0, 2), torch.zeros(0)), (torch.zeros(2, 0), torch.zeros(2)), (torch.zeros(2, 1), torch.zeros(3))],
)
def test_shapes_that_do_not_fit_are_an_error(logps, left):
    with pytest.raises(ValueError, match=r"\(K, V\) and \(K,\)"):
        answer_scores(logps, left)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6), st.floats(0, 5))
def test_an_answer_alone_is_given_and_views_alike_change_nothing(scores, margin):
    logps = torch.tensor(scores, dtype=torch.float64)[:, None]
    left = torch.zeros(len(scores))
    assert preferred_answer(answer_scores(logps[:1], left[:1]), margin) == 0
    one, four = (preferred_answer(answer_scores(own, left), margin) for own in (logps, logps.expand(-1, 4)))
    assert one == four


def test_the_margin_that_gives_the_best_answers():
    """Leads of 0.1 are wrong and leads of 1 are right: any margin between them is best, 0.5 is the one tried."""
    lead = [torch.tensor([-1.0, -0.9]), torch.tensor([-2.0, -1.0])]
    qualities = [torch.tensor([1.0, 0.0]), torch.tensor([0.2, 0.9])]
    assert best_margin(lead, qualities, (0.0, 0.5, 2.0)) == 0.5
    assert best_margin(lead[:1], qualities[:1], (0.0, 0.5, math.inf)) == math.inf
    assert best_margin([], [], (0.0, 0.5, math.inf)) == math.inf
