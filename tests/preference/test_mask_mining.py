"""Strategies that turn judged candidates into a pair: by hand, and what holds for all of them."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from popen.preference.mask_mining import (
    all_equal,
    any_beyond_margin,
    best_against_bottom,
    best_against_random,
    best_against_worst,
    gap_distribution,
    most_disagreement,
    quantiles,
    random_ordered,
)

QUALITIES = [0.5, 0.9, 0.7, 0.1, 0.6]
MASKS = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
STRATEGIES = {
    "best_against_worst": best_against_worst,
    "best_against_random": partial(best_against_random, seed=3),
    "best_against_bottom": partial(best_against_bottom, seed=3),
    "random_ordered": partial(random_ordered, seed=3),
    "any_beyond_margin": partial(any_beyond_margin, seed=3),
    "quantiles": quantiles,
    "most_disagreement": lambda q, margin: most_disagreement(q, margin, torch.eye(len(q)).bool()),
}


def test_by_hand():
    assert best_against_worst(QUALITIES, 0.1).pair == (1, 3)
    assert best_against_bottom(QUALITIES, 0.1, seed=0, share=0.2).pair == (1, 3)
    assert quantiles(QUALITIES, 0.0).pair == (2, 0)  # of 0.1, 0.5, 0.6, 0.7, 0.9 the fourth and the second
    assert most_disagreement(QUALITIES, 0.05, MASKS).pair == (1, 4)  # all four pixels
    assert {best_against_random(QUALITIES, 0.25, seed).pair for seed in range(40)} == {(1, 0), (1, 3), (1, 4)}
    assert {any_beyond_margin(QUALITIES, 0.45, seed).pair for seed in range(40)} == {(1, 3), (2, 3), (4, 3)}
    assert len({random_ordered(QUALITIES, 0.0, seed).pair for seed in range(200)}) == 10


@pytest.mark.parametrize("name", STRATEGIES)
@given(
    qualities=st.lists(st.floats(0, 1).map(lambda x: round(x, 2)), min_size=2, max_size=8),
    margin=st.floats(0.01, 0.5),
)
def test_a_pair_is_ordered_and_beyond_the_margin(name, qualities, margin):
    mined = STRATEGIES[name](qualities, margin)
    if mined.pair is None:
        assert mined.reason == "tie"
    else:
        better, worse = mined.pair
        assert mined.reason == "kept" and qualities[better] - qualities[worse] >= margin


@pytest.mark.parametrize("name", STRATEGIES)
def test_equal_qualities_are_a_tie_and_one_candidate_is_an_error(name):
    assert STRATEGIES[name]([0.5, 0.5, 0.5], 0.0).reason == "tie"
    with pytest.raises(ValueError, match="1 candidates: a pair needs at least 2"):
        STRATEGIES[name]([0.5], 0.1)


def test_equal_masks_are_told():
    assert all_equal(MASKS[:1].expand(3, 4)) and not all_equal(MASKS)


def test_the_distribution_of_gaps_is_one_line():
    assert gap_distribution([0.0, 0.1, 0.2]) == (
        "gaps between best and worst: least 0.000, median 0.100, 90 % 0.180, largest 0.200"
    )
    assert gap_distribution([]) == "no picture has two different candidates"


def test_a_negative_margin_is_an_error():
    with pytest.raises(ValueError, match="margin = -1"):
        best_against_worst(QUALITIES, -1)
