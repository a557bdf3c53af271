"""Every number here can be checked by counting pixels."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import MaskCounts, bootstrap_interval, ciou, giou, match_counts, precision_at

EVERYWHERE = np.ones((1, 16), bool)


def strips(*spans):
    """Masks (N, 1, 16) that cover columns start..stop-1."""
    masks = np.zeros((len(spans), 1, 16), bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


def pairs(slots):
    return [(slot.intersection, slot.union) for slot in slots]


def test_giou_is_the_mean_over_slots_and_ciou_is_pooled():
    """IoUs 1/2, 3/4 and 0: gIoU = (1/2 + 3/4 + 0) / 3 = 5/12; cIoU = (1 + 3 + 0) / (2 + 4 + 4) = 4/10."""
    counts = [MaskCounts(1, 2), MaskCounts(3, 4), MaskCounts(0, 4)]
    assert giou(counts) == pytest.approx(5 / 12)
    assert ciou(counts) == pytest.approx(4 / 10)


def test_empty_against_empty_is_one_and_weighs_nothing_in_ciou():
    """gIoU of {0/0, 1/4} = (1 + 1/4) / 2; cIoU = 1/4."""
    assert giou([MaskCounts(0, 0)]) == ciou([MaskCounts(0, 0)]) == 1.0
    counts = [MaskCounts(0, 0), MaskCounts(1, 4)]
    assert giou(counts) == pytest.approx(5 / 8)
    assert ciou(counts) == pytest.approx(1 / 4)


def test_precision_counts_what_reaches_the_mark():
    """IoUs 1/2, 3/4, 0 and empty against empty."""
    counts = [MaskCounts(1, 2), MaskCounts(3, 4), MaskCounts(0, 4), MaskCounts(0, 0)]
    assert [precision_at(counts, least) for least in (0.5, 0.6, 0.9)] == [0.75, 0.5, 0.25]
    with pytest.raises(ValueError, match="at least one"):
        precision_at([], 0.5)


@pytest.mark.parametrize("metric", [giou, ciou])
def test_no_slots_is_an_error(metric):
    with pytest.raises(ValueError, match="at least one"):
        metric([])


def test_overlap_by_hand():
    """Columns 0–5 against 2–7: 4 shared of 8."""
    assert pairs(match_counts(strips((0, 6)), strips((2, 8)), EVERYWHERE)) == [(4, 8)]


def test_ignored_pixels_leave_the_counts():
    """As above without columns 4–7: 2 shared (2, 3) of 4 (0–3)."""
    valid = EVERYWHERE.copy()
    valid[0, 4:8] = False
    assert pairs(match_counts(strips((0, 6)), strips((2, 8)), valid)) == [(2, 4)]


def test_misses_and_false_alarms_each_get_a_slot():
    """One of two things found (3 of 4): a miss 0/5. The other way round a false alarm 0/5."""
    one, two = strips((0, 3)), strips((8, 13), (0, 4))
    assert sorted(pairs(match_counts(one, two, EVERYWHERE))) == [(0, 5), (3, 4)]
    assert sorted(pairs(match_counts(two, one, EVERYWHERE))) == [(0, 5), (3, 4)]


def test_silence_and_speech_without_a_target():
    """Silence about nothing: 0/0. A mask of 6 where there is nothing: 0/6. Silence about a thing of 6: 0/6."""
    none, some = strips(), strips((0, 6))
    assert pairs(match_counts(none, none, EVERYWHERE)) == [(0, 0)]
    assert pairs(match_counts(some, none, EVERYWHERE)) == [(0, 6)]
    assert pairs(match_counts(none, some, EVERYWHERE)) == [(0, 6)]


def test_disjoint_masks_are_one_slot():
    assert pairs(match_counts(strips((0, 4)), strips((8, 14)), EVERYWHERE)) == [(0, 10)]


def test_crossing_targets_are_matched_for_the_best_sum():
    """Truths A = 0–7, B = 8–15; predictions P = 3–11, Q = 0–2.

    P·A = 5/12, P·B = 4/13, Q·A = 3/8, Q·B = 0. Greedy takes P·A first and is left with Q·B: 0.417. The best sum is
    P·B + Q·A = 0.683.
    """
    slots = match_counts(strips((3, 12), (0, 3)), strips((0, 8), (8, 16)), EVERYWHERE)
    assert pairs(slots) == [(4, 13), (3, 8)]


def test_perfect_masks_in_any_order_score_one():
    truth = strips((0, 4), (4, 9), (12, 16))
    slots = match_counts(truth[[2, 0, 1]], truth, EVERYWHERE)
    assert giou(slots) == ciou(slots) == 1.0 and len(slots) == 3


@pytest.mark.parametrize("extra", [strips((0, 0)), strips((0, 0), (0, 0))], ids=["one", "two"])
def test_an_extra_empty_mask_does_not_raise_the_score(extra):
    """IoU 4/8 stays at most 1/2, however many empty masks the answer adds."""
    predicted = np.concatenate([strips((0, 6)), extra])
    assert giou(match_counts(predicted, strips((2, 8)), EVERYWHERE)) <= 0.5


def test_a_missed_target_under_ignored_pixels_does_not_raise_the_score():
    """The second target cannot be seen; missing it is no merit: 4/8 stays 1/2."""
    valid = EVERYWHERE.copy()
    valid[0, 12:] = False
    slots = match_counts(strips((0, 6)), strips((2, 8), (12, 16)), valid)
    assert giou(slots) <= 0.5


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="differ in size"):
        match_counts(strips((0, 4)), np.zeros((1, 2, 8), bool), EVERYWHERE)
    with pytest.raises(ValueError, match="differ in size"):
        match_counts(np.zeros((0, 4, 4), bool), strips((0, 4)), EVERYWHERE)


masks = st.lists(st.integers(1, 2**8 - 1), min_size=1, max_size=4).map(
    lambda numbers: np.array([[[bool(n >> bit & 1) for bit in range(8)]] for n in numbers])
)


@settings(max_examples=60, deadline=None)
@given(masks, masks)
def test_no_assignment_beats_the_matching(predicted, truth):
    """The matched slots' IoU sum is the largest over all one-to-one assignments, and no pixel is lost."""
    slots = match_counts(predicted, truth, np.ones((1, 8), bool))
    assert len(slots) == max(len(predicted), len(truth))
    few, many = sorted((predicted, truth), key=len)
    best = max(
        sum((a & b).sum() / (a | b).sum() for a, b in zip(few, order, strict=True))
        for order in permutations(many, len(few))
    )
    assert sum(slot.intersection / slot.union for slot in slots) == pytest.approx(best)
    assert sum(slot.union + slot.intersection for slot in slots) == predicted.sum() + truth.sum()


def test_bootstrap_is_drawn_by_its_seed():
    groups = list(np.random.default_rng(1).normal(size=30))
    first, again, other = (bootstrap_interval(groups, np.mean, seed) for seed in (7, 7, 8))
    assert first == again != other
    assert first[0] < np.mean(groups) < first[1]


def test_bootstrap_resamples_groups():
    """Two groups, 0 and 1: the mean of two draws is 0 or 1 a quarter of the time each, so 95 % reach from 0 to 1."""
    assert bootstrap_interval([0, 1], np.mean) == (0.0, 1.0)
    assert bootstrap_interval([3, 3, 3], np.mean) == (3.0, 3.0)
    sizes = []
    bootstrap_interval([0, 1, 2], lambda drawn: sizes.append(len(drawn)) or 0.0, draws=5)
    assert sizes == [3] * 5


def test_bootstrap_without_groups_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([], ciou)


def test_words_of_64_pixels_count_what_pixels_do():
    """Sizes that fill no whole word, ignored pixels, several masks: sums over pixels, one by one."""
    draw = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 9), (8, 16), (13, 21)):
        predicted, truth = draw.random((2, 3, height, width)) < 0.5
        valid = draw.random((height, width)) < 0.8
        found = sorted(pairs(match_counts(predicted[:1], truth[:1], valid)))
        both, either = (predicted[0] & truth[0] & valid).sum(), ((predicted[0] | truth[0]) & valid).sum()
        assert found == [(both, either)]
        assert sum(u for _, u in pairs(match_counts(predicted, truth[:0], valid))) == (predicted & valid).sum()
