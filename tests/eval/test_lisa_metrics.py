"""LISA's own numbers, derived a second time from its published lines, with histograms over labels 0, 1 and 255."""

import numpy as np
import pytest
import torch

from eval.lisa_metrics import lisa_ciou, lisa_giou, lisa_iou, mask_counts
from eval.metrics import MaskCounts


def histograms(output, target):
    """I and U of both classes as LISA's `intersectionAndUnionGPU(output, target, 2, 255)` defines them."""
    output, target = output.flatten().float(), target.flatten().float()
    output = torch.where(target == 255, 255.0, output)
    count = lambda values: torch.histc(values, bins=2, min=0, max=1)  # noqa: E731
    intersection = count(output[output == target])
    return intersection, count(output) + count(target) - intersection


def random_masks(rng):
    """Prediction, truth and valid pixels of a random size; one in eight of each mask is empty, one in eight full."""
    shape = tuple(rng.integers(1, 24, size=2))
    draw = lambda: rng.random(shape) < rng.choice([0.0, 1.0, *rng.random(6)])  # noqa: E731
    return draw(), draw(), draw() | (rng.random() < 0.3)


def test_a_thousand_pairs_give_lisas_numbers():
    rng = np.random.default_rng(0)
    counts, terms, cumulative = [], 0.0, np.zeros((2, 2))
    empties = 0
    for _ in range(1000):
        predicted, truth, valid = random_masks(rng)
        labels = torch.from_numpy(np.where(valid, truth, 255).astype(np.int64))
        intersection, union = (h.double().numpy() for h in histograms(torch.from_numpy(predicted).int(), labels))
        iou = intersection / (union + 1e-5)
        iou[union == 0] += 1.0
        terms += iou[1]
        cumulative += [intersection, union]
        own = mask_counts(predicted, truth, valid)
        assert (own.intersection, own.union) == (intersection[1], union[1])
        assert lisa_iou(own) == pytest.approx(iou[1], abs=1e-6)
        counts.append(own)
        empties += union[1] == 0
    assert empties > 20, "empty against empty was hardly tried"
    assert lisa_giou(counts) == pytest.approx(terms / (1000 + 1e-5), abs=1e-6)
    assert lisa_ciou(counts) == pytest.approx(cumulative[0, 1] / (cumulative[1, 1] + 1e-10), abs=1e-6)


def test_by_hand():
    """IoUs 1/2, 1 (empty against empty) and 0/4: gIoU 1.5/3, cIoU 1/6, less what the ε take."""
    counts = [MaskCounts(1, 2), MaskCounts(0, 0), MaskCounts(0, 4)]
    assert lisa_giou(counts) == pytest.approx((1 / 2.00001 + 1) / 3.00001, abs=1e-12)
    assert lisa_ciou(counts) == pytest.approx(1 / 6, abs=1e-9)


def test_nothing_at_all_has_a_perfect_giou_and_no_ciou():
    """LISA's ε makes ΣI / ΣU of nothing 0, where the strict cIoU is 1."""
    assert lisa_giou([MaskCounts(0, 0)]) == pytest.approx(1, abs=1e-4) and lisa_ciou([MaskCounts(0, 0)]) == 0


def test_ignored_pixels_are_dropped():
    """Four columns, the last ignored: predicted 0, 1, 3, true 1, 2, 3: one shared of three."""
    row = lambda *columns: np.isin(np.arange(4), columns)[None]  # noqa: E731
    assert mask_counts(row(0, 1, 3), row(1, 2, 3), row(0, 1, 2)) == MaskCounts(1, 3)


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 4\), truth \(4, 1\).*differ in size"):
        mask_counts(np.ones((1, 4), bool), np.ones((4, 1), bool), np.ones((1, 4), bool))


@pytest.mark.parametrize("metric", [lisa_giou, lisa_ciou])
def test_no_masks_is_an_error(metric):
    with pytest.raises(ValueError, match="at least one"):
        metric([])
