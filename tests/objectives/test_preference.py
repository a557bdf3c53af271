"""Preference losses against closed forms, TRL's formulas among them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.objectives.preference import (
    bradley_terry_loss,
    conservative_loss,
    hinge_loss,
    ipo_loss,
    offset_loss,
    robust_loss,
    sigmoid_loss,
    simpo_loss,
)

LOSSES = {
    "sigmoid": lambda h, beta: sigmoid_loss(h, beta),
    "hinge": lambda h, beta: hinge_loss(h, beta),
    "ipo": lambda h, beta: ipo_loss(h, beta),
    "conservative": lambda h, beta: conservative_loss(h, beta, 0.1),
    "robust": lambda h, beta: robust_loss(h, beta, 0.1),
    "offset": lambda h, beta: offset_loss(h, beta, torch.full_like(h, 0.5), 2.0),
    "simpo": lambda h, beta: simpo_loss(h, torch.zeros_like(h), beta, 0.5),
}
few = settings(max_examples=25, deadline=None, derandomize=True)
margins = st.floats(-20, 20)
betas = st.floats(0.01, 2)
smoothings = st.floats(0, 0.45)


def one(value):
    return torch.tensor([value], dtype=torch.float64)


def softplus(x):
    """log(1 + e^x) = −log σ(−x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def test_losses_by_hand():
    """β h = ln 3, so σ = 3/4 and 1 − σ = 1/4, for h = 2 ln 3 and β = 1/2; ε = 1/4.

    DPO ln 4/3. Hinge max(0, 1 − ln 3) = 0; at −h 1 + ln 3. IPO (2 ln 3 − 1)².
    cDPO 3/4 ln 4/3 + 1/4 ln 4 = ln 4 − 3/4 ln 3. rDPO (3/4 ln 4/3 − 1/4 ln 4) / (1/2) = ln 4 − 3/2 ln 3.
    ODPO with α Δ = ln 3: −log σ(0) = ln 2.
    SimPO at β (a − b) = 2 ln 3, γ = ln 3: −log σ(ln 3) = ln 4/3.
    Bradley-Terry on scores that differ by ln 3: ln 4/3.
    """
    ln3, ln4 = math.log(3), math.log(4)
    h, beta = one(2 * ln3), 0.5
    by_hand = [
        (sigmoid_loss(h, beta), ln4 - ln3),
        (hinge_loss(h, beta), 0.0),
        (hinge_loss(-h, beta), 1 + ln3),
        (ipo_loss(h, beta), (2 * ln3 - 1) ** 2),
        (conservative_loss(h, beta, 0.25), ln4 - 0.75 * ln3),
        (robust_loss(h, beta, 0.25), ln4 - 1.5 * ln3),
        (offset_loss(h, beta, one(ln3 / 2), 2.0), math.log(2)),
        (simpo_loss(one(ln3 - 5), one(-5.0), 2.0, ln3), ln4 - ln3),
        (bradley_terry_loss(one(ln3 + 5), one(5.0)), ln4 - ln3),
    ]
    for actual, expected in by_hand:
        torch.testing.assert_close(actual, one(expected))


@few
@given(margins, betas, smoothings)
def test_parity_with_the_formulas_of_trl(h, beta, epsilon):
    """TRL 1.16, DPOTrainer: sigmoid, hinge, ipo (on an averaged margin), robust; its aot form smooths as cDPO."""
    clean, swapped = softplus(-beta * h), softplus(beta * h)
    trl = [
        (sigmoid_loss(one(h), beta), clean),
        (hinge_loss(one(h), beta), max(0.0, 1 - beta * h)),
        (ipo_loss(one(h), beta), (h - 1 / (2 * beta)) ** 2),
        (robust_loss(one(h), beta, epsilon), ((1 - epsilon) * clean - epsilon * swapped) / (1 - 2 * epsilon)),
        (conservative_loss(one(h), beta, epsilon), (1 - epsilon) * clean + epsilon * swapped),
    ]
    for actual, expected in trl:
        torch.testing.assert_close(actual, one(expected))


@few
@given(margins, betas, smoothings)
def test_robust_loss_is_unbiased_under_swaps(h, beta, epsilon):
    expectation = (1 - epsilon) * robust_loss(one(h), beta, epsilon) + epsilon * robust_loss(one(-h), beta, epsilon)
    torch.testing.assert_close(expectation, sigmoid_loss(one(h), beta))


@few
@given(margins, betas)
def test_limits_are_the_sigmoid_loss(h, beta):
    plain = sigmoid_loss(one(h), beta)
    for limit in (
        conservative_loss(one(h), beta, 0.0),
        robust_loss(one(h), beta, 0.0),
        offset_loss(one(h), beta, one(0.7), 0.0),
        bradley_terry_loss(one(beta * h), one(0.0)),
    ):
        torch.testing.assert_close(limit, plain)


def test_conservative_and_ipo_losses_have_a_finite_target():
    """cDPO: σ(β h) = 1 − ε, so β h = ln 9 at ε = 0.1. IPO: h = 1/(2β)."""
    for loss, target in ((LOSSES["conservative"], math.log(9) / 0.2), (LOSSES["ipo"], 2.5)):
        h = one(target).requires_grad_()
        loss(h, 0.2).sum().backward()
        torch.testing.assert_close(h.grad, one(0.0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_at_the_reference_every_loss_pushes_the_margin_up(name):
    h = torch.zeros(3, requires_grad=True)
    LOSSES[name](h, 0.5).sum().backward()
    assert (h.grad < 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    h = torch.tensor([-3.0, 0.4, 1.1, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, 0.5), h)


def test_bradley_terry_gradients_and_shift():
    a = torch.tensor([-2.0, 0.0, 0.3, 5.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.0, 0.0, 0.1, -4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bradley_terry_loss, (a, b))
    torch.testing.assert_close(bradley_terry_loss(a + 9, b + 9), bradley_terry_loss(a, b))


@pytest.mark.parametrize("name", LOSSES)
def test_extremes_stay_finite_and_no_pairs_give_no_losses(name):
    loss = LOSSES[name]
    h = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss(h, 1.0).sum().backward()
    assert loss(h, 1.0).isfinite().all() and h.grad.isfinite().all()
    empty = torch.zeros(0, requires_grad=True)
    loss(empty, 1.0).sum().backward()
    assert loss(empty, 1.0).shape == (0,) and empty.grad.shape == (0,)
    assert loss(torch.zeros(2, dtype=torch.bfloat16), 1.0).dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan])
def test_beta_is_checked(name, beta):
    with pytest.raises(ValueError) as error:
        LOSSES[name](torch.zeros(2), beta)
    assert str(error.value) == f"beta must be a finite number > 0, got {beta}"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_the_margin_is_one_dimensional(name, shape):
    with pytest.raises(ValueError) as error:
        LOSSES[name](torch.zeros(shape), 0.1)
    assert str(error.value) == f"margin must be (B,), got {shape}"


@pytest.mark.parametrize("loss", [conservative_loss, robust_loss])
@pytest.mark.parametrize("epsilon", [-0.1, 0.5, 1, math.nan])
def test_label_smoothing_is_checked(loss, epsilon):
    with pytest.raises(ValueError) as error:
        loss(torch.zeros(2), 0.1, epsilon)
    assert str(error.value) == f"label_smoothing must be in [0, 0.5), got {epsilon}"


def test_alpha_gap_and_scores_are_checked():
    h = torch.zeros(2)
    for alpha in (-1, math.inf, math.nan):
        with pytest.raises(ValueError) as error:
            offset_loss(h, 0.1, h, alpha)
        assert str(error.value) == f"alpha must be a finite number >= 0, got {alpha}"
    with pytest.raises(ValueError) as error:
        offset_loss(h, 0.1, h[:1], 1.0)
    assert str(error.value) == "shapes differ: margin (2,), gap (1,)"
    with pytest.raises(ValueError) as error:
        simpo_loss(h, h, 1.0, -0.5)
    assert str(error.value) == "gamma must be a finite number >= 0, got -0.5"
    with pytest.raises(ValueError) as error:
        bradley_terry_loss(h, h[:1])
    assert str(error.value) == "shapes differ: score_chosen (2,), score_rejected (1,)"
