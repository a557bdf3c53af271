"""Supervised losses of a segmenter: values by hand, soft labels, deep supervision, and the Pareto weighting."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from popen.medical.boundary import geodesic_membership, signed_distance
from popen.medical.epsilon_constraint import EpsilonConstraint
from popen.medical.supervised import (
    Labelled,
    cross_entropy_dice,
    fuzzy,
    geols,
    interior_boundary,
    intuitionistic,
    pareto_guided,
    svls,
    weighted,
)

LOSSES = {
    "cross_entropy_dice": cross_entropy_dice,
    "svls": svls,
    "geols": geols,
    "fuzzy": partial(fuzzy, band=2.5),
    "intuitionistic": partial(intuitionistic, band=2.5),
    "pareto_guided": partial(pareto_guided, band=2.5),
    "epsilon_constraint": lambda own, activation: EpsilonConstraint(2.5, limit=0.05, rate=0.1)(own, activation),
}


def labelled(activation="sigmoid", progress=1.0, shape=(12, 12), fill=None):
    region = np.zeros((2, 1, *shape), dtype=bool)
    region[0, 0, ..., 3:9, 3:9] = True
    region[1, 0, ..., 2:5, 6:11] = True
    masks = region if activation == "sigmoid" else np.concatenate([~region, region], 1)
    logits = (
        torch.randn(masks.shape, generator=torch.Generator().manual_seed(0))
        if fill is None
        else fill * (2.0 * torch.from_numpy(masks) - 1)
    )
    spacing = (1.0,) * len(shape)
    geodesic = np.stack([geodesic_membership(np.zeros((1, *shape), np.float32), own, spacing, 0.5) for own in masks])
    return Labelled(
        (logits.float().requires_grad_(),), torch.from_numpy(masks),
        torch.from_numpy(signed_distance(masks, spacing)).float(), torch.from_numpy(geodesic).float(), progress,
    )  # fmt: skip


def test_zero_logits_cost_ln_2_and_a_dice_by_hand():
    parts = {name: part.detach() for name, part in cross_entropy_dice(labelled(fill=0.0), "sigmoid").items()}
    assert float(parts["ce"]) == pytest.approx(np.log(2))
    # semimetric with p = ½ everywhere: Σ|p − y| = 72 of Σ(p + y) + 1 = 73 + area, 36 and 15 pixels
    assert float(parts["dice"]) == pytest.approx((72 / 109 + 72 / 88) / 2)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_prefers_the_truth_and_has_gradients(name, activation):
    loss = partial(LOSSES[name], activation=activation)
    right, wrong = labelled(activation, fill=3.0), labelled(activation, fill=-3.0)
    assert sum(loss(right).values()) < sum(loss(wrong).values())
    given = labelled(activation)
    sum(loss(given).values()).backward()
    assert torch.isfinite(given.levels[0].grad).all() and given.levels[0].grad.abs().sum() > 0


def test_volumes_work_alike():
    given = labelled(shape=(4, 12, 12))
    for loss in LOSSES.values():
        assert torch.isfinite(sum(loss(given, activation="sigmoid").values()))


def test_the_curriculum_starts_without_the_boundary():
    start, end = (pareto_guided(labelled(progress=p), "sigmoid", band=2.5) for p in (0.0, 1.0))
    assert start["boundary"].item() == 0 and start["interior"].item() > 0
    assert end["boundary"].item() > 0


def test_a_pareto_step_over_levels_makes_neither_region_worse():
    """Also where levels share pixels of both regions."""
    given = labelled()
    coarse = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    both = replace(given, levels=(given.levels[0], coarse))
    parts = pareto_guided(both, "sigmoid", band=2.5)
    step, of_interior, of_boundary = (
        torch.cat([own.flatten() for own in torch.autograd.grad(loss, both.levels, retain_graph=True)])
        for loss in (parts["interior"] + parts["boundary"], parts["interior"], parts["boundary"])
    )
    apart = interior_boundary(both, "sigmoid", 2.5)[:2]
    products = [step @ torch.cat([g.flatten() for g in torch.autograd.grad(own, both.levels)]) for own in apart]
    assert min(products) > 0 and step @ of_interior > 0 and step @ of_boundary > 0


def test_a_pareto_step_makes_neither_region_worse():
    """The weighted gradient has no negative product with either region's own, and the weights sum to 2."""
    given = labelled()
    logits = given.levels[0]
    parts = pareto_guided(given, "sigmoid", band=2.5)
    step, of_interior, of_boundary = (
        torch.autograd.grad(loss, logits, retain_graph=True)[0].flatten()
        for loss in (parts["interior"] + parts["boundary"], parts["interior"], parts["boundary"])
    )
    assert step @ of_interior > 0 and step @ of_boundary > 0
    # the regions share no pixel, so their gradients cannot conflict, and each loss counts once
    apart = interior_boundary(given, "sigmoid", 2.5)[:2]
    torch.testing.assert_close([parts["interior"], parts["boundary"]], list(apart))
    torch.testing.assert_close(step @ of_interior, of_interior.square().sum())


@pytest.mark.parametrize("name", ["fuzzy", "intuitionistic", "pareto_guided", "epsilon_constraint"])
def test_a_pixel_that_no_class_reaches_is_the_nearest_ones(name):
    """Between voxels 5 mm apart, where classes meet, all may be further than the band; 0/0 would be its label.

    At zero logits of 3 classes cross-entropy with any label is ln 3; a gradient at the second says that it has it.
    """
    distance = torch.tensor([-3.0, -2.6, -4.0]).view(1, 3, 1, 1)
    logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
    parts = LOSSES[name](Labelled((logits,), distance > 0, distance, None, 1.0), activation="softmax")
    interior = parts.get("interior", parts.get("ce"))
    assert interior.item() == pytest.approx(np.log(3), rel=1e-5)
    (slope,) = torch.autograd.grad(sum(parts.values()), logits)
    assert (slope.flatten() < 0).tolist() == [False, True, False]


def test_deep_supervision_halves_from_level_to_level():
    given = labelled(fill=0.0)
    coarse = torch.full((2, 1, 6, 6), 0.0)
    both = Labelled((given.levels[0], coarse), given.masks, None, None, 1.0)
    assert cross_entropy_dice(both, "sigmoid")["ce"].item() == pytest.approx(np.log(2))
    worse = Labelled((given.levels[0], coarse + 5), given.masks, None, None, 1.0)
    alone = Labelled((coarse + 5,), given.masks, None, None, 1.0)
    expected = 2 / 3 * np.log(2) + 1 / 3 * cross_entropy_dice(alone, "sigmoid")["ce"].item()
    assert cross_entropy_dice(worse, "sigmoid")["ce"].item() == pytest.approx(expected)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_gradients_at_every_level(name, activation):
    """A level without any would be a parameter that no process uses."""
    given = labelled(activation)
    coarse = [torch.randn(*given.masks.shape[:2], side, side).requires_grad_() for side in (6, 3)]
    deep = replace(given, levels=(*given.levels, *coarse))
    sum(LOSSES[name](deep, activation=activation).values()).backward()
    for level in deep.levels:
        assert level.grad is not None and torch.isfinite(level.grad).all() and level.grad.abs().sum() > 0


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("depth", [(), (2,)])
def test_interior_and_boundary_over_levels_by_hand(activation, depth):
    """Columns at 3, 2, 1, −1, −2, −3 mm, a band of 2 mm: a coarse column is a half, all and a half of it, and its
    labels are 1, ½ and 0. At zero logits a level costs ln 2; at 1, 2, −1, with s(z) = ln(1 + exp z),

        interior (½ s(−1) + ½ s(−1)) / 1,   boundary (½ s(−1) + s(2) − 1 + ½ s(−1)) / 2
    """
    region = np.zeros((1, 1, *depth, 4, 6), dtype=bool)
    region[..., :3] = True
    fine, coarse = torch.zeros(region.shape), torch.tensor([1.0, 2.0, -1.0]).expand(1, 1, *(1 for _ in depth), 2, 3)
    if activation == "softmax":
        region = np.concatenate([~region, region], 1)
        fine, coarse = (torch.cat([torch.zeros_like(own), own], 1) for own in (fine, coarse))
    distance = torch.from_numpy(signed_distance(region, (1.0,) * (2 + len(depth))))
    given = Labelled((fine, coarse), torch.from_numpy(region), distance, None, 1.0)
    interior, boundary, dice = interior_boundary(given, activation, 2.0)
    outer, middle = np.log1p(np.exp(-1)), np.log1p(np.exp(2)) - 1
    assert interior.item() == pytest.approx((2 * np.log(2) + outer) / 3)
    assert boundary.item() == pytest.approx((2 * np.log(2) + (outer + middle) / 2) / 3)
    levels = [interior_boundary(replace(given, levels=(fine,)), activation, 2.0)[2].item()]
    if activation == "sigmoid" and not depth:  # Σ|p − y| / (Σp + Σy + 1), a label of m at 1 mm
        m, s = (1 + np.sin(np.pi / 4)) / 2, 1 / (1 + np.exp(-np.array([1.0, 2.0])))
        fine_dice = 4 * (1 + 2 * m) / 25
        coarse_dice = 2 * (2 * (1 - s[0]) + s[1] - 0.5) / (2 * (1 + s[1]) + 3 + 1)
        assert levels[0] == pytest.approx(fine_dice)
        assert dice.item() == pytest.approx((2 * fine_dice + coarse_dice) / 3)


def test_pictures_count_by_their_weights():
    """½ of the first picture's parts and ¼ of the second's, over two; equal weights factor out."""
    given = labelled()
    loss = partial(fuzzy, activation="sigmoid", band=2.5)
    own = [loss(given.only(row)) for row in (0, 1)]
    found = weighted(loss, given, torch.tensor([0.5, 0.25]))
    for name, part in found.items():
        torch.testing.assert_close(part, (0.5 * own[0][name] + 0.25 * own[1][name]) / 2)
    whole, half = loss(given), weighted(loss, given, torch.tensor([0.5, 0.5]))
    plain = weighted(loss, given, torch.ones(2))
    for name, part in whole.items():
        assert torch.equal(plain[name], part) and torch.equal(half[name], 0.5 * part)
        torch.testing.assert_close(part, (own[0][name] + own[1][name]) / 2)
    assert given.only(1).geodesic.shape == (1, 1, 12, 12) and given.only(0).progress == 1.0
    with pytest.raises(ValueError, match=r"weights \(3,\) for 2 pictures; give each its own"):
        weighted(loss, given, torch.ones(3))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_pixels_that_do_not_count_hold_changes_nothing(name, activation):
    """With other masks, maps and logits on a third of the pixels the parts are the same; no slope reaches those."""
    given, other = labelled(activation), labelled(activation, fill=-9.0)
    valid = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(2)) > 0.3
    everywhere = valid.expand_as(given.masks)
    distance = np.stack(
        [signed_distance(own, (1.0, 1.0), v) for own, v in zip(given.masks.numpy(), valid[:, 0].numpy(), strict=True)]
    )
    given = replace(given, distance=torch.from_numpy(distance), valid=valid)
    mixed = [
        torch.where(everywhere, a, b)
        for a, b in (
            (given.levels[0].detach(), other.levels[0].detach()),
            (given.masks, ~given.masks),
            (given.distance, -given.distance),
            (given.geodesic.expand_as(given.masks), 1 - given.geodesic),
        )
    ]
    mixed[0].requires_grad_()
    spoilt = Labelled((mixed[0],), *mixed[1:], given.progress, valid)
    given = replace(given, geodesic=given.geodesic.expand_as(given.masks))
    found, expected = (LOSSES[name](own, activation=activation) for own in (spoilt, given))
    torch.testing.assert_close(found, expected)
    sum(found.values()).backward()
    assert not mixed[0].grad[~everywhere].any() and mixed[0].grad.any()
    assert torch.equal(spoilt.only(1).valid, valid[1:])


@pytest.mark.parametrize("name", LOSSES)
def test_no_picture_costs_nothing(name):
    given = labelled()
    none = Labelled((given.levels[0][:0],), given.masks[:0], given.distance[:0], given.geodesic[:0], 1.0)
    total = sum(LOSSES[name](none, activation="sigmoid").values())
    assert total == 0 and total.requires_grad


def test_pixels_that_do_not_count_are_known_at_one_resolution():
    given = labelled()
    with pytest.raises(
        ValueError, match="valid: pixels that do not count are known at the full resolution; give that"
    ):
        replace(given, levels=(given.levels[0], torch.zeros(2, 1, 6, 6)), valid=torch.ones(2, 1, 12, 12).bool())


def test_a_map_that_was_not_built_is_named():
    given = labelled()
    bare = Labelled(given.levels, given.masks, None, None, 1.0)
    with pytest.raises(ValueError, match="needs distance: build the examples with it"):
        fuzzy(bare, "sigmoid", band=2.0)
    with pytest.raises(ValueError, match="needs geodesic"):
        geols(bare, "sigmoid")
