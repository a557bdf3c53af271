"""IoU with the truth, agreement of words and a judge's choice, by hand."""

import pytest
import torch

from popen.preference.judging import iou_with_truth, judged_best, word_agreement

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


@pytest.mark.parametrize(
    "said, true, share",
    [
        (("red ball",), ("Red ball",), 1.0),
        (("blue ball",), ("red ball",), 0.0),
        (("red ball", "red ball"), ("red ball",), 0.5),
        (("red ball",), ("red ball", "blue box"), 0.5),
        ((), (), 1.0),
        ((), ("red ball",), 0.0),
    ],
)
def test_words_agree_by_hand(said, true, share):
    assert word_agreement(said, true) == share


def test_a_judge_prefers_the_first_of_the_best():
    assert judged_best([0.2, 0.9, 0.9], flips=0.0, seed=0) == 1
    assert judged_best([0.7], flips=1.0, seed=0) == 0  # there is no other


def test_flips_are_as_many_as_asked_for():
    chosen = [judged_best([0.1, 0.9, 0.5], flips=0.3, seed=seed) for seed in range(2000)]
    assert sum(c != 1 for c in chosen) / 2000 == pytest.approx(0.3, abs=0.03)
    assert set(chosen) == {0, 1, 2}


def test_impossible_judges_are_refused():
    for qualities, flips in (([], 0.0), ([0.5], 1.5)):
        with pytest.raises(ValueError, match="at least one"):
            judged_best(qualities, flips, 0)
