"""Mask losses and counts against numbers derived by hand; ignored pixels and absent targets."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from popen.objectives.masks import (
    bce_loss,
    dice_loss,
    focal_loss,
    intersection_union,
    iou_regression_loss,
    refined_bce_loss,
    refinement_weights,
)

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
LN3 = math.log(3)


def twice(logits, targets, valid):
    return refined_bce_loss(logits, targets, valid, torch.full_like(logits, 2.0))


def quality(logits, targets, valid):
    return iou_regression_loss(0.3 + 0 * logits.flatten(1).sum(1), logits, targets, valid)


LOSSES = {"bce": bce_loss, "dice": dice_loss, "focal": focal_loss, "refined": twice, "quality": quality}


def close(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype))


def random_masks(seed, shape=(3, 4, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=dtype)
    targets = torch.rand(shape, generator=generator, dtype=dtype)
    return logits, targets, torch.rand(shape, generator=generator) > 0.3


def by_hand():
    """One mask of four pixels, the last not valid: z = (ln 3, −ln 3, 0, 99), so p = (3/4, 1/4, 1/2)."""
    logits = torch.tensor([[[LN3, -LN3], [0.0, 99.0]]])
    return logits, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), torch.tensor([[[True, True], [True, False]]])


def test_losses_by_hand():
    """y = (1, 1, 0). BCE: (ln 4/3 + ln 4 + ln 2) / 3. Dice: p·y = 1, Σp = 3/2, Σy = 2: 1 − 3 / 4.5 = 1/3.

    Focal, γ = 2, α = 1/4: 1 − q = (1/4, 3/4, 1/2), weights (1/4, 1/4, 3/4):
    [1/4 · 1/16 · ln 4/3 + 1/4 · 9/16 · ln 4 + 3/4 · 1/4 · ln 2] / 3.
    Refined with weights (2, 1, 3): (2 ln 4/3 + ln 4 + 3 ln 2) / 3.
    IoU: P = {0}, Y = {0, 1}: 1/2, so q = 0.8 costs 0.09.
    """
    masks, ln2, ln4, easy = by_hand(), math.log(2), math.log(4), math.log(4 / 3)
    close(bce_loss(*masks), [(easy + ln4 + ln2) / 3])
    close(dice_loss(*masks), [1 / 3])
    close(focal_loss(*masks), [(easy / 64 + 9 * ln4 / 64 + 3 * ln2 / 16) / 3])
    close(refined_bce_loss(*masks, torch.tensor([[[2.0, 1.0], [3.0, 50.0]]])), [(2 * easy + ln4 + 3 * ln2) / 3])
    close(iou_regression_loss(torch.tensor([0.8]), *masks), [0.09])


def test_refinement_weights_by_hand():
    """Answers 7 = {0, 2} and 4 = {1}, four pixels. Answer 7 claims (1+1, 1+0, 0+1, 0+0): contested is pixel 0 only.

    Target 1 claims everything, but alone in its answer: no weight, and none lent to answer 7.
    """
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [3.0, -1.0, 1.0, -2.0]])[:, None]
    logits.requires_grad_()
    weights = refinement_weights(logits, torch.tensor([7, 4, 7]), 2.5)
    close(weights[:, 0], [[2.5, 1, 1, 1], [1, 1, 1, 1], [2.5, 1, 1, 1]])
    assert not weights.requires_grad


@few
@given(seeds, st.integers(1, 4))
def test_refinement_weights_are_the_pairwise_definition(seed, answers):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, 4, generator=generator)
    group = torch.randint(-answers, answers, (5,), generator=generator)
    expected = torch.ones_like(logits)
    for t in range(5):
        claims = sum((logits[k] > 0).int() for k in range(5) if group[k] == group[t])
        expected[t][claims >= 2] = 3.0
    close(refinement_weights(logits, group, 3.0), expected)


@few
@given(seeds)
def test_refined_bce_with_alpha_one_is_bce(seed):
    logits, targets, valid = random_masks(seed)
    weights = refinement_weights(logits, torch.zeros(3, dtype=torch.int64), 1)
    close(refined_bce_loss(logits, targets, valid, weights), bce_loss(logits, targets, valid))


@few
@given(seeds)
def test_focal_loss_is_torchvisions(seed):
    logits, targets, valid = random_masks(seed)
    everywhere, hard = torch.ones_like(valid), (targets > 0.5).double()
    for y in (targets, hard):
        expected = sigmoid_focal_loss(logits, y, alpha=0.25, gamma=2.0).flatten(1).mean(1)
        close(focal_loss(logits, y, everywhere), expected)


@few
@given(seeds)
def test_counts_are_those_of_sets(seed):
    logits, targets, valid = random_masks(seed)
    intersection, union = intersection_union(logits > 0, targets > 0.5, valid)
    assert intersection.dtype == union.dtype == torch.int64
    for t in range(3):
        p, y, v = (set(m[t].flatten().nonzero()[:, 0].tolist()) for m in (logits > 0, targets > 0.5, valid))
        assert (intersection[t], union[t]) == (len(p & y & v), len((p | y) & v))


def test_empty_prediction_of_an_empty_target():
    """Dice 1 − 1/(1 + ~0) ≈ 0, no pixel counted, and an IoU of 1 for the quality head."""
    logits, targets = torch.full((1, 8, 8), -30.0), torch.zeros(1, 8, 8)
    everywhere = torch.ones(1, 8, 8, dtype=torch.bool)
    assert dice_loss(logits, targets, everywhere) < 1e-6
    close(iou_regression_loss(torch.tensor([1.0]), logits, targets, everywhere), [0.0])
    assert [int(n) for n in intersection_union(logits > 0, targets > 0, everywhere)] == [0, 0]


def test_perfect_and_opposite_masks():
    targets = (torch.arange(64).reshape(1, 8, 8) % 3 == 0).float()
    logits, everywhere = 60 * (2 * targets - 1), torch.ones(1, 8, 8, dtype=torch.bool)
    for loss in (bce_loss, dice_loss, focal_loss):
        assert loss(logits, targets, everywhere) < 1e-6
        assert loss(-logits, targets, everywhere) > 0.95
        logits.requires_grad_().grad = None
        loss(logits, targets, everywhere).sum().backward()
        assert logits.grad.isfinite().all()
        logits = logits.detach()


def with_odd_padding(logits, targets, valid):
    """The same masks with what padding may hold: logits of −inf, labels that are not numbers."""
    return logits.masked_fill(~valid, -math.inf), targets.masked_fill(~valid, math.nan), valid


@pytest.mark.parametrize("name", ["bce", "dice", "focal", "refined"])
def test_ignored_pixels_change_neither_loss_nor_gradient(name):
    results = []
    for logits, targets, valid in (random_masks(0), with_odd_padding(*random_masks(0))):
        logits.requires_grad_()
        loss = LOSSES[name](logits, targets, valid)
        loss.sum().backward()
        results.append((loss.detach(), logits.grad))
    (loss, grad), (odd_loss, odd_grad) = results
    close(odd_loss, loss)
    close(odd_grad, grad)
    assert grad[valid].any() and not odd_grad[~valid].any()


def test_ignored_pixels_do_not_change_counts_or_quality():
    masks, odd, predicted = random_masks(0), with_odd_padding(*random_masks(0)), torch.full((3,), 0.3)
    close(iou_regression_loss(predicted, *odd), iou_regression_loss(predicted, *masks))
    counts = [torch.stack(intersection_union(z > 0, y > 0.5, valid)) for z, y, valid in (masks, odd)]
    assert torch.equal(*counts)


@pytest.mark.parametrize("name", LOSSES)
def test_no_targets_and_no_valid_pixels(name):
    for targets_count in (0, 2):
        logits = torch.zeros(targets_count, 4, 5, requires_grad=True)
        loss = LOSSES[name](logits, torch.zeros_like(logits), torch.zeros_like(logits, dtype=torch.bool))
        loss.sum().backward()
        assert loss.shape == (targets_count,) and logits.grad.shape == logits.shape and not logits.grad.any()
        if name != "quality":
            assert not loss.any()


def test_no_targets_for_weights_and_counts():
    none = torch.zeros(0, 4, 5)
    assert refinement_weights(none, torch.zeros(0, dtype=torch.int64), 2.0).shape == (0, 4, 5)
    assert [n.shape for n in intersection_union(none > 0, none > 0, none > 0)] == [(0,), (0,)]


@pytest.mark.parametrize("name", LOSSES)
def test_a_volume_is_its_pixels_and_low_precision_is_lifted(name):
    volume = random_masks(1, (2, 3, 4, 5))
    close(LOSSES[name](*volume), LOSSES[name](*(tensor.reshape(2, 12, 5) for tensor in volume)))
    logits, targets, valid = random_masks(2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        lifted = LOSSES[name](logits, targets, valid)
    assert lifted.dtype == torch.float32
    if name != "quality":  # its stand-in for a prediction is bfloat16 itself
        close(lifted, LOSSES[name](logits.float(), targets.float(), valid))


@pytest.mark.parametrize("name", ["bce", "dice", "focal", "refined"])
def test_gradients(name):
    logits, targets, valid = random_masks(3, (2, 2, 3))
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, targets, valid), logits.requires_grad_())


def test_the_quality_head_learns_and_the_mask_does_not():
    logits, targets, valid = random_masks(4)
    predicted = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
    logits.requires_grad_()
    iou_regression_loss(predicted, logits, targets, valid).sum().backward()
    intersection, union = intersection_union(logits > 0, targets > 0.5, valid)
    assert logits.grad is None
    torch.testing.assert_close(predicted.grad, 2 * (0.4 - intersection.double() / union), rtol=1e-6, atol=1e-6)


def test_bool_targets_count_as_zero_and_one():
    logits, targets, valid = random_masks(5)
    for name in LOSSES:
        close(LOSSES[name](logits, targets > 0.5, valid), LOSSES[name](logits, (targets > 0.5).double(), valid))


Z, V, Q = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool), torch.zeros(2)
W = "(2, 3, 4)"
ERRORS = {
    f"shapes differ: logits {W}, targets (3, 4), valid {W}": lambda: bce_loss(Z, Z[0], V),
    f"shapes differ: logits {W}, targets {W}, valid (1, 3, 4)": lambda: dice_loss(Z, Z, V[:1]),
    "valid must be bool, got torch.float32": lambda: focal_loss(Z, Z, Z),
    "masks must be (T, H, W), got (2,)": lambda: bce_loss(Q, Q, Q.bool()),
    "gamma must be a finite number >= 1, got 0.5": lambda: focal_loss(Z, Z, V, gamma=0.5),
    "alpha must be in 0..1, got 2": lambda: focal_loss(Z, Z, V, alpha=2),
    f"shapes differ: logits {W}, weights (2, 1, 1)": lambda: refined_bce_loss(Z, Z, V, Z[:, :1, :1]),
    f"group must be (T,) for logits (T, H, W), got (3,), {W}": lambda: refinement_weights(Z, torch.zeros(3), 2),
    "alpha must be a finite number >= 1, got 0.5": lambda: refinement_weights(Z, Q.long(), 0.5),
    "alpha must be a finite number >= 1, got inf": lambda: refinement_weights(Z, Q.long(), math.inf),
    f"shapes differ: pred {W}, target {W}, valid (3, 4)": lambda: intersection_union(V, V, V[0]),
    "pred must be bool, got torch.uint8": lambda: intersection_union(V.byte(), V, V),
    "shapes differ: predicted (2, 1), targets (2,)": lambda: iou_regression_loss(Q[:, None], Z, Z, V),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
