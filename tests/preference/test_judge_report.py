"""A judge's report by hand: an oracle, a coin's other side, and one that likes large masks."""

import math

import pytest
import torch

from popen.preference.judge_report import judge_report, log_growth, right_inside, why_unfit


def rows(*lists):
    return torch.tensor([[row] for row in lists]).bool()


TRUTH = rows([1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0])
SMALL = rows([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])  # one right pixel is missing
LARGE = rows([1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0])  # two wrong pixels too many: Dice 2/3, as the small one's


def test_an_oracle_is_right():
    report = judge_report(TRUTH, LARGE, TRUTH)
    assert (report.pairs, report.pair_accuracy, report.correct_inside, report.area_bias) == (2, 1.0, 1.0, 0.0)
    assert why_unfit(report) is None


def test_the_other_way_round_it_is_wrong_and_biased():
    report = judge_report(LARGE, TRUTH, TRUTH)
    assert (report.pair_accuracy, report.correct_inside) == (0.0, 0.0)
    assert report.area_bias == pytest.approx(2 * math.log(2))
    assert "right on 0% of the pixels" in why_unfit(report) and "prefers large masks by 1.39" in why_unfit(report)


def test_equal_quality_counts_half_and_the_bias_still_shows():
    report = judge_report(LARGE, SMALL, TRUTH)
    assert report.pair_accuracy == 0.5
    assert report.correct_inside == pytest.approx(1 / 3)  # of the three pixels that differ one is right
    assert report.area_bias == pytest.approx(math.log(4))
    assert "prefers small" in why_unfit(judge_report(SMALL, LARGE, TRUTH))


def test_pairs_of_equal_masks_are_left_out():
    report = judge_report(torch.cat([TRUTH, LARGE]), torch.cat([LARGE, LARGE]), torch.cat([TRUTH, TRUTH]))
    assert report.pairs == 2
    with pytest.raises(ValueError, match="2 pairs, in none of which the masks differ"):
        judge_report(LARGE, LARGE, TRUTH)


def test_growth_and_correctness_by_hand():
    """4 pixels against 1: three differ, of which the truth has one and lacks two."""
    torch.testing.assert_close(log_growth(LARGE, SMALL), torch.full((2,), math.log(4)).double())
    torch.testing.assert_close(log_growth(SMALL, LARGE), torch.full((2,), -math.log(4)).double())
    torch.testing.assert_close(right_inside(LARGE, SMALL, TRUTH), torch.full((2,), 1 / 3).double())
    torch.testing.assert_close(right_inside(SMALL, LARGE, TRUTH), torch.full((2,), 2 / 3).double())
    assert right_inside(LARGE, LARGE, TRUTH).tolist() == [0.5, 0.5]
    assert log_growth(torch.zeros_like(LARGE), LARGE)[0] == pytest.approx(-math.log(4))  # one pixel at least
    with pytest.raises(ValueError, match=r"shapes differ: chosen \(2, 1, 6\), rejected \(1, 1, 6\)"):
        log_growth(LARGE, SMALL[:1])
    with pytest.raises(ValueError, match=r"truth must be bool, got torch\.int64"):
        right_inside(LARGE, SMALL, TRUTH.long())
