"""Judges of whole masks by hand."""

import math

import pytest
import torch

from popen.preference.mask_judging import agreement, certainty, dice_with_truth, flips

TRUTH = torch.tensor([[1, 1, 0, 0]]).bool()


def masks(*rows):
    return torch.tensor([[row] for row in rows]).bool()


def test_dice_by_hand():
    """Same 2·2/4, shifted 2·1/4, disjoint 0, everything 2·2/6, nothing 0."""
    found = dice_with_truth(masks([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]), TRUTH)
    torch.testing.assert_close(found, torch.tensor([1, 0.5, 0, 2 / 3, 0], dtype=torch.float64))


def test_regions_count_alike_and_a_rightly_empty_one_is_1():
    candidates = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0]]]).bool()
    truth = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert dice_with_truth(candidates, truth).tolist() == [0.75]


def test_volumes_work_alike():
    volume = torch.rand(3, 1, 4, 5, 6) > 0.5
    torch.testing.assert_close(dice_with_truth(volume, volume[0]), agreement(volume.flatten(2), volume[0].flatten(1)))


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"shapes differ: masks \(1, 1, 4\), truth \(1, 3\)"):
        dice_with_truth(masks([1, 1, 0, 0]), TRUTH[:, :3])


def test_certainty_is_the_entropy_where_any_candidate_is_on():
    p = torch.tensor([[[0.5, 0.5, 0.5]], [[1.0, 1.0, 0.5]]])
    on = torch.tensor([[[1, 0, 0]], [[1, 1, 0]]]).bool()
    found = certainty(p, on)
    assert found[0] == pytest.approx(-math.log(2)) and found[1] == pytest.approx(0, abs=1e-9)
    assert certainty(p, on & ~on).tolist() == [0, 0]


def test_flips_are_as_frequent_as_asked_and_seeded():
    assert not any(flips(50, 0.0, 1)) and all(flips(50, 1.0, 1))
    assert 230 < sum(flips(1000, 0.25, 3)) < 270
    assert flips(20, 0.5, 7) == flips(20, 0.5, 7) != flips(20, 0.5, 8)
    with pytest.raises(ValueError, match=r"rate = 1\.5"):
        flips(3, 1.5, 0)
