"""Losses by the names that a recipe has for them."""

import typing
from dataclasses import fields

import pytest
import torch

from popen.data.safe_io import DataError
from popen.medical.loss_choices import LossArguments, objective_of, supervised_of
from popen.medical.supervised import Labelled
from popen.objectives.preference import conservative_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.region_pairs import RegionPairs

NAMES = {f.name: typing.get_args(f.type) for f in fields(LossArguments)}
PAIRS = RegionPairs(
    torch.tensor([[1.0, 2.0, 4.0]]), torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 1.0]]),
    torch.zeros(1, 3, dtype=torch.long), torch.full((1,), 0.2), 1, 12.0,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES["supervised"])
def test_every_loss_on_labels_gets_the_maps_that_it_asks_for(name):
    args = LossArguments(supervised=name)
    masks = torch.zeros(1, 1, 8, 8).bool()
    masks[..., 2:6, 2:6] = True
    depth = torch.where(masks, 1.5, -1.5)
    maps = [depth if args.maps["distance"] else None, masks.float() if args.maps["geodesic"] else None]
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    parts = supervised_of(args, "sigmoid")(Labelled((logits,), masks, *maps, 0.8))
    assert torch.isfinite(sum(parts.values())) and sum(parts.values()) > 0


def test_an_epsilon_constraint_goes_on_and_another_starts_anew():
    args = LossArguments(supervised="epsilon_constraint", interior_limit=0.1, multiplier_rate=1.0)
    masks = torch.ones(1, 1, 4, 4).bool()
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    given, loss = Labelled((logits,), masks, torch.full((1, 1, 4, 4), 9.0), None, 0.5), supervised_of(args, "sigmoid")
    first, second = (loss(given)["interior"].item() for _ in range(2))
    assert second > first == supervised_of(args, "sigmoid")(given)["interior"].item()


@pytest.mark.parametrize(
    ("margin", "value"),
    [("sum", 3.0), ("image_mean", 3 / 12), ("region_mean", 1.0), ("class_mean", 1.0), ("power", 3**0.5)],
)
def test_margins_by_hand(margin, value):
    """1 − 2 + 4 over the sum, 12 pixels, 3 of R, the one class, √3."""
    found = objective_of(LossArguments(margin=margin))(PAIRS)
    assert (found.chosen - found.rejected).item() == pytest.approx(value)


@pytest.mark.parametrize(
    ("loss", "function", "kwargs"),
    [
        ("sigmoid", sigmoid_loss, {}),
        ("ipo", ipo_loss, {}),
        ("cdpo", conservative_loss, {"label_smoothing": 0.2}),
        ("rdpo", robust_loss, {"label_smoothing": 0.2}),
    ],
)
def test_losses_on_the_margin(loss, function, kwargs):
    found = objective_of(LossArguments(loss=loss, beta=0.5, label_smoothing=0.2))(PAIRS)
    torch.testing.assert_close(found.losses, function(torch.ones(1), beta=0.5, **kwargs))


@pytest.mark.parametrize("band", [1.0, float("nan"), float("inf")])
def test_a_band_without_a_pixel_is_refused(band):
    with pytest.raises(DataError, match=f"band = {band}: narrower than 1.5 pixels it leaves every label hard"):
        LossArguments(band=band)


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": "power", "alpha": 2.0},
        {"loss": "rdpo", "label_smoothing": 0.5},
        {"loss": "cdpo", "label_smoothing": -0.1},
        {"beta": 0.0},
    ],
)
def test_numbers_that_the_objective_cannot_take_are_named_before_training(wrong):
    name = list(wrong)[-1]
    with pytest.raises(ValueError, match=f"^{name} must be "):
        LossArguments(**wrong)


@pytest.mark.parametrize("wrong", [{"interior_limit": -0.1}, {"multiplier_rate": 0.0}])
def test_numbers_out_of_range_are_named(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(DataError, match=f"{name} = {value}.*the limit cannot be negative, and the rate must be above"):
        LossArguments(**wrong)
