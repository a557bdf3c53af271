"""Weights of a judge's pairs by hand: an oracle's stay near 1, grown pairs of one that likes large masks go to 0."""

import pytest
import torch

from popen.preference.judge_report import log_growth, right_inside
from popen.preference.judge_weights import GrowthWeights, growth_weights


def rows(*lists):
    return torch.tensor([[row] for row in lists]).bool()


TRUTH = [1, 1, 1, 1, 0, 0, 0, 0]
SMALL = [1, 1, 1, 0, 0, 0, 0, 0]
LARGE = [1, 1, 1, 1, 1, 1, 0, 0]


def weighed(chosen, rejected, count, **kwargs):
    """The weights from `count` pairs of two masks in this order."""
    sides = [rows(*[own] * count) for own in (chosen, rejected)]
    truth = rows(*[TRUTH] * count)
    return growth_weights(log_growth(*sides), right_inside(*sides, truth), **kwargs)


def test_an_oracle_keeps_almost_its_whole_weight():
    """18 pairs, all right: p = (18 + 1) / (18 + 2) = 0.95, w = 0.9; other bins have seen nothing and weigh 0."""
    found = weighed(TRUTH, LARGE, 18)  # ln 4/6 = −0.41: much smaller
    assert found.weights == pytest.approx((0.9, 0, 0, 0, 0)) and found.pairs == (18, 0, 0, 0, 0)
    assert found.correct == (1.0, 0.5, 0.5, 0.5, 0.5)
    assert weighed(TRUTH, LARGE, 198).weights[0] == pytest.approx(0.99)


def test_grown_pairs_of_a_judge_that_likes_large_masks_weigh_nothing():
    """Right on a third of R where it lets a mask grow, p < ½; its other pairs keep 2 · (6 · ⅚ + 1) / 8 − 1 = ½."""
    large, small, truth = rows(*[LARGE] * 9), rows(*[SMALL] * 9), rows(*[TRUTH] * 9)
    growth = torch.cat([log_growth(large, small), torch.zeros(6).double()])
    correct = torch.cat([right_inside(large, small, truth), torch.full((6,), 5 / 6).double()])
    found = growth_weights(growth, correct)
    assert found.weights == pytest.approx((0, 0, 0.5, 0, 0))
    assert found.of(log_growth(large, small)).tolist() == [0.0] * 9


def test_few_pairs_are_believed_less():
    """One right pair: p = (1 + 1) / (1 + 2) = ⅔ and w = ⅓; without a prior 1."""
    assert weighed(TRUTH, LARGE, 1).weights[0] == pytest.approx(1 / 3)
    assert weighed(TRUTH, LARGE, 1, prior=0).weights == (1.0, 0, 0, 0, 0)


def test_weights_are_looked_up_by_bin_and_an_edge_is_above_it():
    found = GrowthWeights((-0.1, 0.1), (0.2, 0.9, 0.0), (1, 1, 1), (0.6, 0.9, 0.5))
    growth = torch.tensor([-5.0, -0.1, 0.0, 0.1, 5.0], dtype=torch.float64)
    assert found.of(growth).tolist() == [0.2, 0.9, 0.9, 0.0, 0.0]
    assert found.of(growth.reshape(5, 1)).shape == (5, 1)
    assert str(found) == (
        "weight by growth in log area: -inf..-0.1 0.20 (right 60% of 1), -0.1..+0.1 0.90 (right 90% of 1), "
        "+0.1..+inf 0.00 (right 50% of 1)"
    )


N = torch.zeros(2)
ERRORS = {
    "shapes differ: growth (2,), correct (1,)": lambda: growth_weights(N, N[:1]),
    "growth (0,): give (N,) with at least one labelled pair": lambda: growth_weights(N[:0], N[:0]),
    "edges (0.1, -0.1), prior 2.0: edges must ascend, the prior cannot be negative": lambda: growth_weights(
        N, N, (0.1, -0.1)
    ),
    "edges (0.0,), prior -1: edges must ascend, the prior cannot be negative": lambda: growth_weights(
        N, N, (0.0,), -1
    ),
    "correct: shares lie in 0..1": lambda: growth_weights(N, N + 2),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
