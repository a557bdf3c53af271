"""Paired comparisons against enumeration of signs, and by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from eval.paired import CaseValues, compare_arms, holm, paired_difference, signed_rank_p


def arm(values, patients=None):
    """Values (S, C) or (C,); every case is a patient of its own unless named."""
    values = np.atleast_2d(np.array(values, float))
    cases = tuple(f"case {i}" for i in range(values.shape[1]))
    return CaseValues(cases, tuple(patients or cases), values)


def enumerated_p(gaps):
    """Two-sided p over all 2^N signs: twice the smaller tail of the sum of positive ranks."""
    gaps = [gap for gap in gaps if gap]
    ranks = rankdata(np.abs(gaps))
    seen = sum(rank for rank, gap in zip(ranks, gaps, strict=True) if gap > 0)
    sums = np.array(
        [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in product((0, 1), repeat=len(gaps))]
    )
    return min(1, 2 * min((sums <= seen + 1e-9).mean(), (sums >= seen - 1e-9).mean()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9).filter(any))
def test_signed_ranks_as_all_signs_give_them(gaps):
    """Ties and zeros included."""
    assert signed_rank_p(np.array(gaps, float)) == pytest.approx(enumerated_p(gaps))


def test_signed_ranks_by_hand():
    """Five gains of different size: one of 2⁵ signs is as good, two are as far: p = 2/32. Zeros change nothing."""
    assert signed_rank_p(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 32)
    assert signed_rank_p(np.array([0.0, -1, -2, -3, -4, -5, 0])) == pytest.approx(2 / 32)
    assert signed_rank_p(np.zeros(4)) == 1


def test_signed_ranks_of_many_by_the_normal_approximation():
    """60 gains, the smallest three negative: T = 6, mean 60 · 61 / 4 = 915, variance 60 · 61 · 121 / 24."""
    gaps = np.arange(1.0, 61)
    gaps[:3] *= -1
    expected = 2 * norm.cdf((6 - 915) / np.sqrt(60 * 61 * 121 / 24))
    assert signed_rank_p(gaps) == pytest.approx(expected)


def test_what_differs_by_rounding_is_a_tie():
    assert signed_rank_p(np.array([0.1 + 0.2 - 0.3, 0.0])) == 1
    assert signed_rank_p(np.array([0.3 - 0.2, 0.2 - 0.1, -0.1])) == pytest.approx(enumerated_p([1, 1, -1]))


def test_a_gain_of_every_case_alike_has_no_spread():
    found = paired_difference(arm([0.9, 0.5, 0.7]), arm([0.8, 0.4, 0.6]))
    assert found.difference == pytest.approx(0.1) == found.low == found.high
    assert (found.cases, found.patients, found.seeds) == (3, 3, 1)
    assert found.p == found.p_holm == pytest.approx(2 / 8)


def test_the_same_arm_does_not_differ_from_itself():
    found = paired_difference(arm([0.2, 0.9]), arm([0.2, 0.9]))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_patients_are_drawn_with_all_their_cases():
    """Eight cases of one patient gain 1, one of another nothing. Both, one or the other are drawn: 8/9, 1 or 0.

    Drawn as nine cases, 95 % would reach down to 6/9 at least.
    """
    own = paired_difference(arm([1] * 8 + [0], ["ann"] * 8 + ["bob"]), arm([0] * 9, ["ann"] * 8 + ["bob"]))
    assert own.difference == pytest.approx(8 / 9) and (own.low, own.high, own.patients) == (0, 1, 2)
    assert paired_difference(arm([1] * 8 + [0]), arm([0] * 9)).low > 0.5


def test_the_test_ranks_patients_and_not_their_cases():
    """Two patients with gains: p = 2/4 however many cases they have."""
    patients = ["ann"] * 6 + ["bob"] * 3
    found = paired_difference(arm(np.arange(1, 10), patients), arm([0] * 9, patients))
    assert found.p == pytest.approx(0.5)


def test_seeds_are_kept():
    """A seed that gains 2 and one that loses 1 in every case: 0.5, and no spread, as no seed is drawn."""
    found = paired_difference(arm([[2, 2, 2], [-1, -1, -1]]), arm(np.zeros((2, 3))))
    assert (found.difference, found.low, found.high, found.seeds) == (0.5, 0.5, 0.5, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(1, 3), st.integers(0, 9))
def test_swapping_the_arms_changes_the_sign(cases, seeds, number):
    rng = np.random.default_rng(number)
    a, b = arm(rng.normal(size=(seeds, cases))), arm(rng.normal(size=(seeds, cases)))
    there, back = paired_difference(a, b, draws=200), paired_difference(b, a, draws=200)
    assert back.difference == pytest.approx(-there.difference) and back.p == pytest.approx(there.p)
    assert back.low == pytest.approx(-there.high) and back.high == pytest.approx(-there.low)
    assert there.low <= there.high


def test_an_interval_is_drawn_by_its_seed():
    a, b = arm(np.random.default_rng(1).normal(size=30)), arm(np.zeros(30))
    first, again, other = (paired_difference(a, b, seed) for seed in (7, 7, 8))
    assert first == again and (first.low, first.high) != (other.low, other.high)
    wide = 1.96 * a.values_SC.std() / np.sqrt(30)
    assert first.high - first.low == pytest.approx(2 * wide, rel=0.15)


def test_holm_by_hand():
    """Of 0.01, 0.04, 0.03: 3 · 0.01, 2 · 0.03, and 0.04, which may not be less than 0.06."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert list(holm({"b": 0.5, "a": 0.1})) == ["b", "a"] and holm({}) == {}


def test_arms_are_compared_with_one_control():
    """Two arms that gain in all of 5 cases (p = 1/16) and one that does in none."""
    control = arm([0.0] * 5)
    found = compare_arms({"base": control, "x": arm([1, 2, 3, 4, 5]), "y": control, "z": arm([5, 4, 3, 2, 1])}, "base")
    assert list(found) == ["x", "y", "z"]
    assert [own.p for own in found.values()] == pytest.approx([1 / 16, 1, 1 / 16])
    assert [own.p_holm for own in found.values()] == pytest.approx([3 / 16, 1, 3 / 16])


THREE = arm([1, 2, 3])


@pytest.mark.parametrize(
    "one, other, message",
    [
        (THREE, arm([1, 2]), "were scored on different cases"),
        (THREE, arm([1, 2, 3], ["a", "a", "b"]), "were scored on different cases"),
        (THREE, arm(np.zeros((2, 3))), "the arm has 1 seeds and the control 2; run as many of both"),
        (arm([1, float("nan"), 3]), THREE, "values must be finite, of at least one seed; score missing regions"),
        (CaseValues((), (), np.zeros((1, 0))), THREE, "no cases to compare"),
        (CaseValues(("a",), ("a",), np.zeros((1, 2))), THREE, r"1 cases, 1 patients and values \(1, 2\) differ"),
    ],
)
def test_what_cannot_be_paired_is_refused(one, other, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(one, other)
    with pytest.raises(ValueError, match=f"new against base: .*{message}"):
        compare_arms({"base": other, "new": one}, "base")


def test_a_control_must_be_there():
    with pytest.raises(ValueError, match="no arm 'base' to compare with; there: a, b"):
        compare_arms({"a": THREE, "b": THREE}, "base")
