"""The preferred answer: values by hand, and a margin that is found again."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from popen.preference.answers import best_margin, preferred_answer


def test_the_likeliest_on_average_is_preferred():
    """Means −1, −0.75, −2: the second wins over its views though the first is likelier under one of them."""
    logps = torch.tensor([[-0.5, -1.5], [-1.0, -0.5], [-2.0, -2.0]])
    assert preferred_answer(logps, 0.0) == 1
    assert preferred_answer(logps[:, :1], 0.0) == 0


def test_the_own_answer_has_a_head_start():
    logps = torch.tensor([[-1.0], [-0.75]])
    assert preferred_answer(logps, 0.2) == 1
    assert preferred_answer(logps, 0.25) == 0  # a tie is the own answer's
    assert preferred_answer(logps, math.inf) == 0


@pytest.mark.parametrize(
    ("logps", "margin"),
    [(torch.zeros(0, 2), 0.0), (torch.zeros(2, 0), 0.0), (torch.zeros(2), 0.0), (torch.zeros(2, 1), -0.1)],
)
def test_nothing_to_choose_from_is_an_error(logps, margin):
    with pytest.raises(ValueError, match="margin >= 0"):
        preferred_answer(logps, margin)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=6), st.floats(0, 5))
def test_an_answer_alone_is_given_and_views_alike_change_nothing(scores, margin):
    logps = torch.tensor(scores, dtype=torch.float64)[:, None]
    assert preferred_answer(logps[:1], margin) == 0
    assert preferred_answer(logps, margin) == preferred_answer(logps.expand(-1, 4), margin)


def test_the_margin_that_gives_the_best_answers():
    """Leads of 0.1 are wrong and leads of 1 are right: any margin between them is best, 0.5 is the one tried."""
    lead = [torch.tensor([[-1.0], [-0.9]]), torch.tensor([[-2.0], [-1.0]])]
    qualities = [torch.tensor([1.0, 0.0]), torch.tensor([0.2, 0.9])]
    assert best_margin(lead, qualities, (0.0, 0.5, 2.0)) == 0.5
    assert best_margin(lead[:1], qualities[:1], (0.0, 0.5, math.inf)) == math.inf
    assert best_margin([], [], (0.0, 0.5, math.inf)) == math.inf
