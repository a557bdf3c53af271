"""Steps are shared out over rounds without one being lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popen.data.safe_io import DataError
from popen.medical.pair_rounds import steps_of_rounds


@given(st.integers(1, 50), st.integers(0, 500))
def test_no_step_is_lost(rounds, more):
    steps = steps_of_rounds(rounds + more, rounds)
    assert len(steps) == rounds and sum(steps) == rounds + more and 1 <= min(steps) >= max(steps) - 1


def test_the_remainder_is_spread():
    assert steps_of_rounds(10, 4) == [2, 3, 2, 3]


@pytest.mark.parametrize(("rounds", "steps"), [(5, 4), (0, 4), (1, -1)])
def test_a_round_needs_a_step(rounds, steps):
    with pytest.raises(DataError, match=rf"rounds = {rounds}, max_steps = {steps}: each round needs a step"):
        steps_of_rounds(steps, rounds)
