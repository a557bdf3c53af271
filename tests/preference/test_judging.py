"""IoU with the truth, by hand."""

import torch

from popen.preference.judging import iou_with_truth

TRUTH = torch.tensor([[1, 1, 0, 0]]).bool()
EVERYWHERE = torch.ones(1, 4).bool()


def masks(*rows):
    return torch.tensor([[row] for row in rows]).bool()


def test_iou_by_hand():
    """Same 2/2, shifted 1/3, disjoint 0/4, everything 2/4, nothing 0/2."""
    found = iou_with_truth(
        masks([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]), TRUTH, EVERYWHERE
    )
    torch.testing.assert_close(found, torch.tensor([1, 1 / 3, 0, 0.5, 0], dtype=torch.float64))


def test_ignored_pixels_do_not_count():
    """Without the third pixel the shifted mask is 1/2 and the disjoint one 0/3."""
    valid = torch.tensor([[1, 1, 0, 1]]).bool()
    found = iou_with_truth(masks([0, 1, 1, 0], [0, 0, 1, 1]), TRUTH, valid)
    assert found.tolist() == [0.5, 0.0]
    assert iou_with_truth(masks([0, 0, 1, 0]), TRUTH & ~TRUTH, valid).tolist() == [
        1.0
    ]  # both are empty where it counts


def test_both_empty_is_right():
    nothing = torch.zeros(1, 4).bool()
    assert iou_with_truth(masks([0, 0, 0, 0], [0, 0, 0, 1]), nothing, EVERYWHERE).tolist() == [1.0, 0.0]


def test_no_candidates():
    assert iou_with_truth(torch.zeros(0, 1, 4).bool(), TRUTH, EVERYWHERE).shape == (0,)
