"""Supervised losses of a segmenter: values by hand, soft labels, deep supervision, and the Pareto weighting."""

from functools import partial

import numpy as np
import pytest
import torch

from popen.medical.boundary import geodesic_membership, signed_distance
from popen.medical.supervised import (
    Labelled,
    cross_entropy_dice,
    fuzzy,
    geols,
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
    # regions share no pixel, so MGDA's shortest combination has equal products with both gradients
    share = of_interior.norm() / of_boundary.norm()
    torch.testing.assert_close(step @ of_interior, of_interior.square().sum())
    assert 0.2 < share < 5


def test_deep_supervision_halves_from_level_to_level():
    given = labelled(fill=0.0)
    coarse = torch.full((2, 1, 6, 6), 0.0)
    both = Labelled((given.levels[0], coarse), given.masks, None, None, 1.0)
    assert cross_entropy_dice(both, "sigmoid")["ce"].item() == pytest.approx(np.log(2))
    worse = Labelled((given.levels[0], coarse + 5), given.masks, None, None, 1.0)
    alone = Labelled((coarse + 5,), given.masks, None, None, 1.0)
    expected = 2 / 3 * np.log(2) + 1 / 3 * cross_entropy_dice(alone, "sigmoid")["ce"].item()
    assert cross_entropy_dice(worse, "sigmoid")["ce"].item() == pytest.approx(expected)


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


def test_a_map_that_was_not_built_is_named():
    given = labelled()
    bare = Labelled(given.levels, given.masks, None, None, 1.0)
    with pytest.raises(ValueError, match="needs distance: build the examples with it"):
        fuzzy(bare, "sigmoid", band=2.0)
    with pytest.raises(ValueError, match="needs geodesic"):
        geols(bare, "sigmoid")
