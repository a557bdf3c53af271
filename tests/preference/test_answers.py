"""The preference score of answers: values by hand, and weights that are found again."""

import math

import pytest
import torch

from popen.preference.answers import answer_scores, fit_answer_weights, preferred_answer


def test_scores_by_hand():
    evidence = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    assert answer_scores(evidence, torch.tensor([2.0, -1.0])).tolist() == [0.0, -3.0]
    assert preferred_answer(evidence, torch.tensor([2.0, -1.0])) == 0
    assert preferred_answer(evidence, torch.tensor([0.0, 1.0])) == 1


def test_the_first_of_equal_answers_is_preferred():
    assert preferred_answer(torch.zeros(3, 2), torch.ones(2)) == 0


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="differ in F"):
        answer_scores(torch.zeros(2, 3), torch.zeros(2))


def test_one_weight_by_hand():
    """Evidence 1 wins three times against 0 and loses once: σ(w) = 3/4, w = ln 3 but for the ridge."""
    evidence = [torch.tensor([[1.0], [0.0]])] * 4
    qualities = [torch.tensor([1.0, 0.0])] * 3 + [torch.tensor([0.0, 1.0])]
    assert fit_answer_weights(evidence, qualities, 0.1, torch.zeros(evidence[0].shape[1])).tolist() == pytest.approx(
        [math.log(3)], abs=0.02
    )


def test_known_weights_are_found_again():
    """2,000 pairs whose winners are drawn by Bradley-Terry with w = (1.5, −1, 0)."""
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([1.5, -1.0, 0.0])
    evidence = [torch.randn(2, 3, generator=generator) * torch.tensor([1.0, 2.0, 5.0]) for _ in range(2000)]
    wins = [torch.rand((), generator=generator) < torch.sigmoid(e[0] @ true - e[1] @ true) for e in evidence]
    qualities = [torch.tensor([1.0, 0.0]) if won else torch.tensor([0.0, 1.0]) for won in wins]
    found = fit_answer_weights(evidence, qualities, 0.1, torch.zeros(evidence[0].shape[1]))
    assert found.tolist() == pytest.approx(true.tolist(), abs=0.15)


def test_close_answers_say_nothing():
    evidence = [torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0], [5.0]])]
    none, prior = torch.zeros(1), torch.tensor([2.0])
    far = fit_answer_weights(evidence[:1], [torch.tensor([1.0, 0.0])], 0.1, none)
    both = fit_answer_weights(evidence, [torch.tensor([1.0, 0.0]), torch.tensor([0.50, 0.55, 0.45])], 0.2, none)
    torch.testing.assert_close(far, both)
    assert fit_answer_weights(evidence[:1], [torch.tensor([0.50, 0.55])], 0.2, prior).tolist() == [2.0]


def test_one_pair_moves_the_prior_its_own_way():
    evidence, prior = [torch.tensor([[1.0], [0.0]])], torch.tensor([2.0])
    up = fit_answer_weights(evidence, [torch.tensor([1.0, 0.0])], 0.1, prior)
    down = fit_answer_weights(evidence, [torch.tensor([0.0, 1.0])], 0.1, prior)
    assert down.item() < 2.0 < up.item()
