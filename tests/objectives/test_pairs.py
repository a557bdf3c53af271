"""Objectives on pairs: by hand, and equal to the functions that they put together."""

import math
from dataclasses import fields, replace
from functools import partial

import pytest
import torch

from popen.objectives.pairs import (
    Completions,
    SegPairs,
    TextPairs,
    seg_embedding_dpo,
    seg_gap_between,
    seg_info_nce,
    seg_mask_dpo,
    seg_mask_offset,
    seg_medium_triplet,
    seg_triplet,
    text_dpo,
    text_simpo,
)
from popen.objectives.preference import ipo_loss, sigmoid_loss
from popen.objectives.region_pairs import image_mean, power, region_dpo, region_mean, seg_region_dpo, total
from popen.objectives.scores import embedding_distance_margin, weighted_token_logps


def completions(logps, ref, mask, changed):
    return Completions(torch.tensor([logps]), torch.tensor([ref]), torch.tensor([mask]), torch.tensor([changed]))


@pytest.fixture
def pairs():
    """Chosen: −1 against −3 and, changed, −1 against −2. Rejected: −5 against −2; its second token is padding."""
    chosen = completions([-1.0, -1.0], [-3.0, -2.0], [True, True], [False, True])
    rejected = completions([-5.0, 0.0], [-2.0, -7.0], [True, False], [True, False])
    return TextPairs(chosen, rejected)


def test_text_dpo_by_hand(pairs):
    """w = 2: rewards 2 + 2·1 = 4 and 2·(−3) = −6, so β h = 10 β."""
    found = text_dpo(pairs, partial(weighted_token_logps, weight=2.0), partial(sigmoid_loss, beta=0.1))
    assert (found.chosen.item(), found.rejected.item()) == (4.0, -6.0)
    assert found.losses.item() == pytest.approx(math.log1p(math.exp(-1.0)))


def test_text_simpo_sees_no_reference(pairs):
    """Means −1 and −5 per token: β (−1 + 5) − γ = 2·4 − 1 = 7."""
    found = text_simpo(pairs, beta=2.0, gamma=1.0)
    assert (found.chosen.item(), found.rejected.item()) == (-1.0, -5.0)
    assert found.losses.item() == pytest.approx(math.log1p(math.exp(-7.0)))


@pytest.fixture
def seg():
    """e = (0, 0), reference (0, 1), e⁺ = (3, 4), e⁻ = (0, 2), worst (0, −8); two pixels of R, one of them padding."""
    vectors = [torch.tensor([[v]]) for v in ([0.0, 0.0], [0.0, 1.0], [3.0, 4.0], [0.0, 2.0], [0.0, -8.0])]
    pixels = [torch.tensor([v]) for v in ([2.0, 9.0], [0.5, 0.0], [1.0, 0.0])]
    return SegPairs(*vectors, *pixels, torch.tensor([0.3]), torch.tensor([40]))


def test_seg_mask_dpo_by_hand(seg):
    found = seg_mask_dpo(seg, partial(sigmoid_loss, beta=1.0))
    assert (found.chosen - found.rejected).item() == 1.5
    assert found.losses.item() == pytest.approx(math.log1p(math.exp(-1.5)))


@pytest.mark.parametrize(
    ("margin", "value"),
    [(total, 2.0), (image_mean, 2 / 40), (region_mean, 1.0), (partial(power, alpha=0.5), math.sqrt(2))],
)
def test_seg_region_dpo_by_hand(seg, margin, value):
    """Gains 2 − ½ and −(1 − 1½) on a region of two pixels, in a picture of 40 that count."""
    logits, ref, signs = (torch.tensor([v]) for v in ([2.0, 1.0], [0.5, 1.5], [1.0, -1.0]))
    pairs = replace(seg, logits=logits, ref_logits=ref, signs=signs)
    found = seg_region_dpo(pairs, partial(region_dpo, margin=margin, loss=partial(ipo_loss, beta=0.5)))
    assert (found.chosen - found.rejected).item() == pytest.approx(value)
    assert found.losses.item() == pytest.approx((value - 1) ** 2)


def test_seg_region_dpo_on_the_region_mean_is_seg_mask_dpo(seg):
    loss = partial(sigmoid_loss, beta=0.7)
    found = seg_region_dpo(seg, partial(region_dpo, margin=region_mean, loss=loss))
    expected = seg_mask_dpo(seg, loss)
    for field in fields(found):
        assert torch.equal(getattr(found, field.name), getattr(expected, field.name))


def test_seg_embedding_dpo_is_its_margin(seg):
    found = seg_embedding_dpo(seg, embedding_distance_margin, partial(sigmoid_loss, beta=1.0))
    h = embedding_distance_margin(seg.embedding, seg.reference, seg.superior, seg.rejected)
    torch.testing.assert_close(found.chosen - found.rejected, h)
    torch.testing.assert_close(found.losses, sigmoid_loss(h, 1.0))


def test_losses_without_a_reference_reward_nearness(seg):
    """‖e − e⁺‖ = 5, ‖e − e⁻‖ = 2: triplet 1 + 5 − 2 = 4."""
    found = seg_triplet(seg, margin=1.0)
    assert (found.losses.item(), found.chosen.item(), found.rejected.item()) == (4.0, -5.0, -2.0)
    assert seg_info_nce(seg, temperature=1.0).losses.isfinite().all()


def test_the_medium_candidate_moves_with_the_embedding(seg):
    """a = e + (e⁻ − e_ref) = (0, 1): ‖a − e⁺‖ = √18, ‖a − worst‖ = 9; at e = (0, 9) a = (0, 10)."""
    found = seg_medium_triplet(seg, margin=6.0)
    assert found.chosen.item() == pytest.approx(-math.sqrt(18)) and found.rejected.item() == -9.0
    assert found.losses.item() == pytest.approx(6 + math.sqrt(18) - 9)
    moved = seg_medium_triplet(replace(seg, embedding=torch.tensor([[[0.0, 9.0]]])), margin=6.0)
    assert moved.rejected.item() == -18.0


def test_an_offset_asks_for_more_where_the_gap_is_larger(seg):
    """β h − α Δ = 1.5 − 2 · 0.3."""
    found = seg_mask_offset(seg, beta=1.0, alpha=2.0)
    assert (found.chosen - found.rejected).item() == 1.5
    assert found.losses.item() == pytest.approx(math.log1p(math.exp(-0.9)))


def test_gaps_outside_the_bounds_are_left_out(seg):
    two = SegPairs(*(torch.cat([getattr(seg, f.name)] * 2) for f in fields(seg)))
    two = replace(two, gap=torch.tensor([0.3, 0.6]), embedding=torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]]))
    triplet = partial(seg_triplet, margin=1.0)
    assert seg_gap_between(two, triplet, 0.0, 0.6).losses.tolist() == seg_triplet(seg, 1.0).losses.tolist()
    assert seg_gap_between(two, triplet, 0.6, math.inf).chosen.tolist() == [0.0]
    assert seg_gap_between(two, triplet, 0.7, math.inf).losses.shape == (0,)
