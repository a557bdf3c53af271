"""An LVLM's arguments and a segmenter's name the same objectives."""

import typing

import pytest
import torch

from popen.medical.loss_choices import LossArguments, objective_of
from popen.objectives.region_pairs import RegionPairs, class_mean, region_mean
from popen.preference.mask_objectives import LossOnMargin, MaskMargin, OneMaskMargin, mask_objective

NUMBERS = {"alpha": 0.3, "beta": 0.5, "label_smoothing": 0.2}
PAIRS = RegionPairs(
    torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 7.0]]), torch.zeros(2, 3), torch.tensor([[1.0, -1, 1], [1, 0, 0]]),
    torch.zeros(2, 3, dtype=torch.long), torch.full((2,), 0.2), 1, torch.tensor([12.0, 9.0]),
)  # fmt: skip


@pytest.mark.parametrize("loss", typing.get_args(LossOnMargin))
@pytest.mark.parametrize("margin", typing.get_args(MaskMargin))
def test_a_segmenters_recipe_has_the_same(margin, loss):
    found = mask_objective(margin, loss, **NUMBERS)(PAIRS)
    expected = objective_of(LossArguments(margin=margin, loss=loss, **NUMBERS))(PAIRS)
    assert torch.equal(found.losses, expected.losses) and found.losses.shape == (2,)


def test_pictures_of_two_sizes_have_a_mean_each():
    """1 − 2 + 4 over 12 pixels, 3 over 9."""
    found = mask_objective("image_mean", "ipo", **NUMBERS)(PAIRS)
    torch.testing.assert_close(found.chosen - found.rejected, torch.tensor([3 / 12, 3 / 9]))


def test_of_one_mask_a_mean_over_classes_is_the_mean():
    assert set(typing.get_args(MaskMargin)) - set(typing.get_args(OneMaskMargin)) == {"class_mean"}
    torch.testing.assert_close(class_mean(PAIRS), region_mean(PAIRS))


@pytest.mark.parametrize(("name", "value"), [("alpha", 1.5), ("beta", -1.0), ("label_smoothing", 0.5)])
def test_what_is_asked_for_is_checked_and_the_rest_is_not(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*{value}"):
        mask_objective("power", "cdpo", **NUMBERS | {name: value})
    if name != "beta":
        mask_objective("sum", "sigmoid", **NUMBERS | {name: value})
