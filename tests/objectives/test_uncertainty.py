"""Labels near a boundary by hand, their invariants, and the two regions' losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.objectives.soft_targets import dice_semimetric_loss, soft_bce_loss, softmax_ce_loss
from popen.objectives.uncertainty import (
    boundary_mask,
    curriculum_weight,
    fuzzy_labels,
    geodesic_labels,
    intuitionistic_labels,
    region_losses,
    spatially_varying_labels,
)

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
bands = st.floats(0.5, 10)


def close(actual, expected, **kwargs):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **kwargs)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def distances(seed, shape=(2, 3, 4, 5)):
    return 6 * torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def one_hot_masks(seed, shape):
    labels = torch.randint(3, (shape[0], *shape[2:]), generator=generator(seed))
    return torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).bool()


# fuzzy labels


def test_fuzzy_labels_by_hand():
    """δ = 3 mm: sin(π/6) = ½ at d = 1, so μ = ¾; hard from the edge of the band on, also at ±inf."""
    distance = torch.tensor([-math.inf, -4.0, -3.0, -1.0, 0.0, 1.0, 3.0, 4.0, math.inf])
    close(fuzzy_labels(distance, 3.0), [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


@few
@given(seeds, bands)
def test_fuzzy_labels_are_hard_outside_the_band_and_rise_with_the_distance(seed, band):
    distance = distances(seed)
    labels, inside = fuzzy_labels(distance, band), distance > 0
    certain = ~boundary_mask(distance, band)
    close(labels[certain], inside[certain].double())
    assert torch.equal(labels > 0.5, inside)
    close(fuzzy_labels(-distance, band), 1 - labels)
    assert (fuzzy_labels(distance + 0.1, band) >= labels).all()


@few
@given(bands, st.sampled_from([-1.0, 1.0]))
def test_the_ramp_is_continuous_and_flat_at_the_edge_of_the_band(band, side):
    step = 1e-4 * band
    edge = side * torch.tensor([band - step, band, band + step], dtype=torch.float64)
    labels = fuzzy_labels(edge, band)
    close(labels, torch.full_like(labels, side > 0), atol=1e-7, rtol=0)


def test_intuitionistic_labels_by_hand():
    """δ = 3, h_max = ½. At d = 1: μ = ¾, h = ½ · ⅔ = ⅓, so μ′ = ½, ν = ⅙. On the boundary h = ½, μ′ = ν = ¼."""
    labels = intuitionistic_labels(torch.tensor([1.0, 0.0, -3.0, math.inf]), 3.0, 0.5)
    close(labels.membership, [1 / 2, 1 / 4, 0, 1])
    close(labels.non_membership, [1 / 6, 1 / 4, 1, 0])
    close(labels.hesitation, [1 / 3, 1 / 2, 0, 0])


@few
@given(seeds, bands, st.floats(0, 1))
def test_intuitionistic_labels_sum_to_one_and_weigh_as_what_is_known(seed, band, most):
    """−μ′ log p − ν log(1 − p) = (1 − h) · BCE(p, μ)."""
    distance, logits = distances(seed), distances(seed + 1)
    labels = intuitionistic_labels(distance, band, most)
    close(labels.membership + labels.non_membership + labels.hesitation, torch.ones_like(distance))
    assert min(part.min() for part in vars(labels).values()) >= 0
    bce = -labels.membership * logits.sigmoid().log() - labels.non_membership * (-logits).sigmoid().log()
    known = 1 - labels.hesitation
    if most < 1:
        expected = soft_bce_loss(logits, fuzzy_labels(distance, band), known)
        close(bce.sum((2, 3)) / known.sum((2, 3)), expected)


def test_the_band_is_closed():
    distance = torch.tensor([-2.1, -2.0, 0.0, 2.0, 2.1, math.inf])
    assert boundary_mask(distance, 2.0).tolist() == [False, True, True, True, False, False]


# curriculum


def test_curriculum_weight_by_hand():
    assert [curriculum_weight(t, 10, 2) for t in (0, 5, 10, 20)] == [0, 0.25, 1, 1]
    assert curriculum_weight(5, 10, 1) == 0.5


def test_region_losses_by_hand():
    """z = 0 everywhere but one boundary pixel of z = ln 3, all labels 1: ln 2 inside, (ln 2 + ln 4/3) / 2 on it.

    The last pixel is not valid. A region without valid pixels costs 0.
    """
    logits, targets = torch.tensor([[[0.0, 0.0, 0.0, math.log(3), 9.0]]]), torch.ones(1, 1, 5)
    boundary = torch.tensor([[[False, False, True, True, False]]])
    valid = torch.tensor([[[True, True, True, True, False]]])
    interior, edge = region_losses(soft_bce_loss, logits, targets, boundary, valid)
    close(interior, [[math.log(2)]])
    close(edge, [[(math.log(2) + math.log(4 / 3)) / 2]])
    assert region_losses(soft_bce_loss, logits, targets, boundary, valid & boundary)[0] == 0


def test_a_coarse_pixel_counts_in_each_region_by_its_share():
    """z = 0 and ln 3, labels 1; a quarter of the first and half of the second lie on the boundary."""
    logits, share = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[[0.25, 0.5]]])
    interior, edge = region_losses(soft_bce_loss, logits, torch.ones(1, 1, 2), share, torch.ones(1, 1, 2).bool())
    close(interior, [[(0.75 * math.log(2) + 0.5 * math.log(4 / 3)) / 1.25]])
    close(edge, [[(0.25 * math.log(2) + 0.5 * math.log(4 / 3)) / 0.75]])


@few
@given(seeds)
def test_a_pixel_moves_the_loss_of_its_own_region_only(seed):
    logits, targets = distances(seed).requires_grad_(), distances(seed + 1).sigmoid()
    boundary = boundary_mask(distances(seed + 2), 4.0)
    valid = torch.rand(logits.shape, generator=generator(seed)) > 0.2
    for loss in (soft_bce_loss, dice_semimetric_loss):
        losses = region_losses(loss, logits, targets, boundary, valid)
        for region, own in zip(losses, (~boundary, boundary), strict=True):
            (grad,) = torch.autograd.grad(region.sum(), logits)
            assert torch.equal(grad != 0, own & valid)


def test_the_regions_of_classes_are_pixels():
    logits, boundary = distances(0), boundary_mask(distances(1), 4.0).any(1)
    labels, valid = distances(2).softmax(1), torch.ones_like(boundary)
    interior, edge = region_losses(softmax_ce_loss, logits, labels, boundary, valid)
    counts = [region.flatten(1).sum(1) for region in (~boundary, boundary)]
    together = (counts[0] * interior + counts[1] * edge) / (counts[0] + counts[1])
    close(together, softmax_ce_loss(logits, labels, valid))


def test_labels_are_made_in_full_precision_also_under_autocast():
    distance, masks = distances(0).to(torch.bfloat16), one_hot_masks(0, (2, 3, 4, 5))
    makers = (
        lambda: fuzzy_labels(distance, 4.0),
        lambda: intuitionistic_labels(distance, 4.0, 0.5).membership,
        lambda: spatially_varying_labels(masks),
        lambda: geodesic_labels(masks, distance.sigmoid(), 0.3),
    )
    for make in makers:
        with torch.autocast("cpu", torch.bfloat16):
            labels = make()
        assert labels.dtype == torch.float32
        close(labels, make(), rtol=0, atol=0)


# published smoothings


def test_spatially_varying_labels_by_hand():
    """σ = 1: sides weigh a = e^−½, corners b = e^−1, all eight a sum of 4a + 4b, the centre as much as that.

    Beside a straight edge one side and two corners are of the other class: (a + 2b) / (4a + 4b) / 2.
    """
    masks = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    masks[:, 0, :, :3], masks[:, 1, :, 3:] = True, True
    labels = spatially_varying_labels(masks, 1.0)
    a, b = math.exp(-0.5), math.exp(-1)
    other = (a + 2 * b) / (4 * a + 4 * b) / 2
    close(labels[0, 0], [[1, 1, 1 - other, other, 0, 0]] * 4)
    close(labels[0, 1], 1 - labels[0, 0])


def test_one_voxel_spreads_to_its_26_neighbours():
    """σ² = ½: weights e^−1, e^−2, e^−3 for 6 sides, 12 edges and 8 corners; the voxel itself keeps ½."""
    masks = torch.zeros(1, 1, 5, 5, 5, dtype=torch.bool)
    masks[0, 0, 2, 2, 2] = True
    labels = spatially_varying_labels(masks, math.sqrt(0.5))[0, 0]
    total = 6 * math.exp(-1) + 12 * math.exp(-2) + 8 * math.exp(-3)
    near = torch.stack([labels[2, 2, 2], labels[2, 2, 1], labels[2, 1, 3], labels[1, 3, 3], labels[2, 2, 0]])
    close(near, [0.5, math.exp(-1) / total / 2, math.exp(-2) / total / 2, math.exp(-3) / total / 2, 0])
    close(labels.sum(), 1.0)


@few
@given(seeds, st.sampled_from([(2, 3, 4, 5), (1, 3, 3, 4, 2)]), st.floats(0.01, 30))
def test_varying_labels_are_distributions_that_keep_the_class(seed, shape, sigma):
    masks = one_hot_masks(seed, shape)
    labels = spatially_varying_labels(masks, sigma)
    close(labels.sum(1), torch.ones_like(labels[:, 0]))
    assert (labels[masks] >= 0.5 - 1e-6).all() and labels.min() >= 0
    same = torch.ones(1, 1, *shape[2:], dtype=torch.bool)
    close(spatially_varying_labels(same, sigma), same.float())
    assert spatially_varying_labels(masks[:0], sigma).shape == (0, *shape[1:])


def test_neighbours_that_do_not_count_have_no_say():
    """Beside a straight edge one side and two corners of eight neighbours are of the other class; in the picture's
    first row, where three sides and two corners are left, one side and one corner. Sides weigh 1, corners e^−½."""
    masks = torch.zeros(1, 1, 3, 6, dtype=torch.bool)
    masks[..., :2], masks[..., 4:] = True, True  # the last two columns are padding, whatever they hold
    valid = torch.ones(1, 1, 3, 6, dtype=torch.bool)
    valid[..., 4:] = False
    labels = spatially_varying_labels(masks, 1.0, valid)[0, 0]
    a, b = math.exp(0.0), math.exp(-0.5)  # relative to a side
    of_five, of_all = (a + b) / (3 * a + 2 * b), (a + 2 * b) / (4 * a + 4 * b)
    close(labels[0, :4], [1, 1 - of_five / 2, of_five / 2, 0])
    close(labels[1, :4], [1, 1 - of_all / 2, of_all / 2, 0])
    alone = torch.zeros_like(valid)
    alone[0, 0, 1, 1] = True
    assert spatially_varying_labels(masks, 1.0, alone)[0, 0, 1, 1] == 1
    close(spatially_varying_labels(masks[..., :4], 1.0, valid[..., :4])[0, 0], labels[:, :4])


def test_geodesic_labels_blend():
    masks, geodesic = torch.tensor([[[True, False]]]), torch.tensor([[[0.5, 0.25]]])
    close(geodesic_labels(masks, geodesic, 0.2), [[[0.9, 0.05]]])
    close(geodesic_labels(masks, geodesic, 0.0), masks.float())
    close(geodesic_labels(masks, geodesic, 1.0), geodesic)


D, M = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.bool)
ERRORS = {
    "band must be a finite number > 0, got 0": lambda: fuzzy_labels(D, 0),
    "band must be a finite number > 0, got nan": lambda: boundary_mask(D, math.nan),
    "band must be a finite number > 0, got inf": lambda: intuitionistic_labels(D, math.inf, 0.5),
    "most must be in 0..1, got 1.5": lambda: intuitionistic_labels(D, 1.0, 1.5),
    "step must be a number >= 0, got -1": lambda: curriculum_weight(-1, 10, 1),
    "step must be a number >= 0, got nan": lambda: curriculum_weight(math.nan, 10, 1),
    "warmup must be a finite number > 0, got 0": lambda: curriculum_weight(1, 0, 1),
    "power must be a finite number > 0, got -1": lambda: curriculum_weight(1, 10, -1),
    "shapes differ: boundary (1, 2, 3), valid (1, 3)": lambda: region_losses(soft_bce_loss, D, D, M, M[:, 0]),
    "boundary must be bool or float, got torch.int64": lambda: region_losses(soft_bce_loss, D, D, M.long(), M),
    "valid must be bool, got torch.float32": lambda: region_losses(soft_bce_loss, D, D, D, D),
    "masks must be bool, got torch.float32": lambda: spatially_varying_labels(D),
    "masks must be (B, K, H, W) or (B, K, D, H, W), got (1, 2, 3)": lambda: spatially_varying_labels(M),
    "valid must be bool, got torch.int64": lambda: spatially_varying_labels(M[None], 1.0, M[None].long()),
    "valid must be (B, 1, *spatial) for masks (1, 1, 2, 3), got (1, 2, 3)": lambda: spatially_varying_labels(
        M[None], 1.0, M
    ),
    "sigma must be a finite number > 0, got 0": lambda: spatially_varying_labels(M[None], 0),
    "shapes differ: masks (1, 2, 3), geodesic (2, 3)": lambda: geodesic_labels(M, D[0], 0.5),
    "masks must be bool, got torch.int64": lambda: geodesic_labels(M.long(), D, 0.5),
    "alpha must be in 0..1, got -0.5": lambda: geodesic_labels(M, D, -0.5),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
