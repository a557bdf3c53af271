"""Diversity of candidates by hand."""

import pytest
import torch

from popen.preference.diversity import pairwise_iou, variance_map

MASKS = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()


def test_pairwise_iou_by_hand():
    """1/2, 0 and 0 of the three pairs; two empty masks agree."""
    assert pairwise_iou(MASKS) == pytest.approx(0.5 / 3)
    assert pairwise_iou(MASKS[:1].expand(4, 3)) == pytest.approx(1.0)
    assert pairwise_iou(torch.zeros(2, 5).bool()) == 1.0


def test_variance_is_that_of_a_coin():
    torch.testing.assert_close(variance_map(MASKS), torch.tensor([2 / 9, 2 / 9, 0], dtype=torch.float64))


def test_one_candidate_has_no_diversity():
    with pytest.raises(ValueError, match="1 candidates: diversity needs at least 2"):
        pairwise_iou(MASKS[:1])
