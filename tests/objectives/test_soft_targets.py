"""Losses on soft labels: where they are smallest, what they are on hard labels, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.objectives.masks import bce_loss, dice_loss
from popen.objectives.soft_targets import (
    dice_semimetric_loss,
    soft_bce_loss,
    softmax_ce_loss,
    softmax_dice_semimetric_loss,
)

SIGMOID = {"bce": soft_bce_loss, "dice": dice_semimetric_loss}
SOFTMAX = {"ce": softmax_ce_loss, "softmax dice": softmax_dice_semimetric_loss}
LOSSES = SIGMOID | SOFTMAX
few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
LN3 = math.log(3)


def close(actual, expected, **kwargs):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **kwargs)


def random_case(name, seed=0, shape=(2, 3, 4, 5), dtype=torch.float64):
    """Logits, soft labels, and weights of which about a third are 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=dtype)
    targets = torch.rand(shape, generator=generator, dtype=dtype)
    if name in SOFTMAX:
        targets = targets / targets.sum(1, keepdim=True)
        shape = (shape[0], *shape[2:])
    weights = (torch.rand(shape, generator=generator, dtype=dtype) - 0.3).clamp(min=0)
    return logits, targets, weights


def label_logits(name, targets):
    """The logits at which a loss's probabilities are the labels."""
    return targets.logit() if name in SIGMOID else targets.log()


def test_sigmoid_losses_by_hand():
    """p = (3/4, 1/4, 1/2), y = (1, 1/2, 0), w = (2, 1, 1), and a pixel of weight 0.

    BCE: [2 ln 4/3 + ½ (ln 4 + ln 4/3) + ln 2] / 4.
    Dice: Σ w|p − y| = 2·¼ + ¼ + ½ = 5/4; Σ wp + Σ wy + 1 = 9/4 + 5/2 + 1 = 23/4: 5/23.
    """
    logits = torch.tensor([[[LN3, -LN3, 0.0, 99.0]]])
    targets, weights = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]]), torch.tensor([[[2.0, 1.0, 1.0, 0.0]]])
    ln2, ln43 = math.log(2), math.log(4 / 3)
    close(soft_bce_loss(logits, targets, weights), [[(2 * ln43 + ln2 + ln43 / 2 + ln2) / 4]])
    close(dice_semimetric_loss(logits, targets, weights), [[5 / 23]])


def test_softmax_losses_by_hand():
    """Two classes, p = (3/4, 1/4) and (1/2, 1/2), y = (1, 0) and (1/4, 3/4), w = (1, 3), and a pixel of weight 0.

    CE: (ln 4/3 + 3 ln 2) / 4. Dice, class 0: (¼ + 3·¼) / (9/4 + 7/4 + 1) = 1/5;
    class 1: (¼ + 3·¼) / (7/4 + 9/4 + 1) = 1/5.
    """
    logits = torch.tensor([[[LN3, 0.0, 9.0], [0.0, 0.0, -9.0]]])
    targets = torch.tensor([[[1.0, 0.25, 0.0], [0.0, 0.75, 1.0]]])
    weights = torch.tensor([[1.0, 3.0, 0.0]])
    close(softmax_ce_loss(logits, targets, weights), [(math.log(4 / 3) + 3 * math.log(2)) / 4])
    close(softmax_dice_semimetric_loss(logits, targets, weights), [[1 / 5, 1 / 5]])


def test_a_label_of_a_half_is_learned_as_a_half_and_not_as_one():
    """The ordinary Dice loss is smallest at p = 1 for a label of ½; the semimetric and the cross-entropy at ½."""
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    logits = p.logit()[:, None, None].expand(99, 1, 16)
    half, everywhere = torch.full_like(logits, 0.5), torch.ones_like(logits, dtype=torch.bool)
    assert p[dice_loss(logits, half, everywhere).argmin()] == p[-1]
    for loss in SIGMOID.values():
        close(p[loss(logits, half, everywhere)[:, 0].argmin()], 0.5)
    close(dice_semimetric_loss(logits[49:50], half[:1], everywhere[:1]), [[0.0]])


@few
@given(seeds, st.sampled_from(sorted(LOSSES)))
def test_losses_are_smallest_where_the_probabilities_are_the_labels(seed, name):
    """Dice is 0 there, cross-entropy the entropy of the labels; no other logits give less, and the slope vanishes."""
    logits, targets, weights = random_case(name, seed)
    best = label_logits(name, targets).requires_grad_()
    least = LOSSES[name](best, targets, weights)
    if "dice" in name:
        close(least, torch.zeros(2, 3), atol=1e-7, rtol=0)
    else:
        least.sum().backward()
        close(best.grad, torch.zeros_like(best), atol=1e-9, rtol=0)
    assert (LOSSES[name](logits, targets, weights) >= least).all()


@few
@given(seeds)
def test_on_hard_labels_they_are_the_ordinary_losses(seed):
    logits, targets, weights = random_case("bce", seed)
    hard, valid = targets > 0.5, weights > 0
    flat = [tensor.flatten(0, 1) for tensor in (logits, hard.double(), valid)]
    close(soft_bce_loss(logits, hard, valid).flatten(), bce_loss(*flat))
    close(dice_semimetric_loss(logits, hard, valid).flatten(), dice_loss(*flat))


@few
@given(seeds)
def test_softmax_losses_are_torchs_cross_entropy_and_the_dice_of_each_class(seed):
    logits, targets, weights = random_case("ce", seed)
    pixels = F.cross_entropy(logits, targets, reduction="none")
    close(softmax_ce_loss(logits, targets, weights), (pixels * weights).sum((1, 2)) / weights.sum((1, 2)))
    of_each = dice_semimetric_loss(logits.softmax(1).logit(), targets, weights[:, None].expand_as(logits))
    close(softmax_dice_semimetric_loss(logits, targets, weights), of_each)


@few
@given(seeds)
def test_two_classes_by_softmax_are_one_region_by_sigmoid(seed):
    """softmax(0, z)₁ = σ(z): equal cross-entropy, equal Dice of the foreground."""
    logits, targets, weights = random_case("bce", seed, (2, 1, 4, 5))
    both, labels = torch.cat([torch.zeros_like(logits), logits], 1), torch.cat([1 - targets, targets], 1)
    close(softmax_ce_loss(both, labels, weights[:, 0]), soft_bce_loss(logits, targets, weights)[:, 0])
    foreground = softmax_dice_semimetric_loss(both, labels, weights[:, 0])[:, 1:]
    close(foreground, dice_semimetric_loss(logits, targets, weights))


@few
@given(seeds, st.sampled_from(["bce", "ce"]), st.floats(0.01, 100))
def test_means_do_not_depend_on_the_scale_of_the_weights(seed, name, scale):
    logits, targets, weights = random_case(name, seed)
    close(LOSSES[name](logits, targets, scale * weights), LOSSES[name](logits, targets, weights))


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_of_weight_zero_may_hold_anything(name):
    logits, targets, weights = random_case(name)
    out = weights == 0 if name in SIGMOID else (weights == 0)[:, None].expand_as(logits)
    grads, losses = [], []
    for z, y in ((logits, targets), (logits.masked_fill(out, -math.inf), targets.masked_fill(out, math.nan))):
        z.requires_grad_()
        losses.append(LOSSES[name](z, y, weights))
        losses[-1].sum().backward()
        grads.append(z.grad)
    close(losses[1], losses[0])
    close(grads[1], grads[0])
    assert not grads[1][out].any() and grads[1][~out].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", [0, 2])
def test_no_pictures_and_no_weight(name, batch):
    logits, targets, weights = random_case(name, shape=(batch, 3, 4, 5))
    logits.requires_grad_()
    loss = LOSSES[name](logits, targets, torch.zeros_like(weights))
    loss.sum().backward()
    assert loss.shape == ((batch,) if name == "ce" else (batch, 3))
    assert not loss.any() and not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_volume_is_its_pixels_and_low_precision_is_lifted(name):
    logits, targets, weights = random_case(name, 1, (2, 3, 3, 4, 5))
    flat = logits.flatten(3), targets.flatten(3), weights.flatten(-2)
    close(LOSSES[name](logits, targets, weights), LOSSES[name](*flat))
    low = [tensor.to(torch.bfloat16) for tensor in (logits, targets, weights)]
    with torch.autocast("cpu", torch.bfloat16):
        lifted = LOSSES[name](*low)
    assert lifted.dtype == torch.float32
    close(lifted, LOSSES[name](*(tensor.float() for tensor in low)))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    logits, targets, weights = random_case(name, 3, (2, 2, 2, 3))
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, targets, weights), logits.requires_grad_())


Z = torch.zeros(2, 3, 4)
ERRORS = {
    "shapes differ: logits (2, 3, 4), targets (2, 4), weights (2, 3, 4)": lambda: soft_bce_loss(Z, Z[:, 0], Z),
    "shapes differ: logits (2, 3, 4), targets (2, 3, 4), weights (2, 4)": lambda: dice_semimetric_loss(Z, Z, Z[:, 0]),
    "logits must be (B, K, *spatial), got (2, 4)": lambda: soft_bce_loss(Z[:, 0], Z[:, 0], Z[:, 0]),
    "logits must be (B, K, *spatial), got (3, 4)": lambda: softmax_ce_loss(Z[0], Z[0], Z[0]),
    "shapes differ: logits (2, 3, 4), targets (2, 2, 4)": lambda: softmax_ce_loss(Z, Z[:, :2], Z[:, 0]),
    "weights must be (B, *spatial) for logits (2, 3, 4) (B, K, *spatial), got (2, 3, 4)": (
        lambda: softmax_dice_semimetric_loss(Z, Z, Z)
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
