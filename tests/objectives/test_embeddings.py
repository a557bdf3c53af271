"""Embedding losses with two forwards or without a reference: by hand, and where they pull."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.objectives.embeddings import diffusion_margin, info_nce_loss, triplet_loss
from popen.objectives.scores import embedding_squared_margin

few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def close(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype))


def random_embeddings(seed, shape=(3, 4), count=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def rows(*values):
    return [torch.tensor([value]) for value in values]


def test_diffusion_margin_by_hand():
    """e⁺ = (1, 0), its reference (0, 0), t⁺ = (2, 0): 1 − 4 = −3. e⁻ = (0, 1), reference (0, 0), t⁻ = (0, 3): 4 − 9.

    h = −½ (−3 − (−5)) = −1: the inferior side came nearer to its own candidate than the superior side did.
    """
    zero = [0.0, 0.0]
    close(diffusion_margin(*rows([1.0, 0.0], zero, [2.0, 0.0], [0.0, 1.0], zero, [0.0, 3.0])), [-1.0])


@few
@given(seeds)
def test_one_view_on_both_sides_leaves_half_the_squared_margin(seed):
    e, ref, plus, minus = random_embeddings(seed, count=4)
    close(diffusion_margin(e, ref, plus, e, ref, minus), 0.5 * embedding_squared_margin(e, ref, plus, minus))


def test_two_views_have_an_attractor():
    """On arrival at t⁺ the superior side is not pulled any further."""
    at_plus = torch.ones(1, 2, requires_grad=True)
    other = torch.zeros(1, 2)
    diffusion_margin(at_plus, other, torch.ones(1, 2), other, other, other).sum().backward()
    assert not at_plus.grad.any()


def test_triplet_by_hand():
    """‖e − e⁺‖ = 1, ‖e − e⁻‖ = 2: m = 3 leaves 2, m = 1 leaves 0."""
    e = rows([0.0, 0.0], [1.0, 0.0], [0.0, 2.0])
    close(triplet_loss(*e, margin=3.0), [2.0])
    close(triplet_loss(*e, margin=1.0), [0.0])


def test_info_nce_by_hand():
    """cos = 1 and 0 at τ = 1/ln 3: −ln (3 / (3 + 1))."""
    close(info_nce_loss(*rows([1.0, 0.0], [2.0, 0.0], [0.0, 5.0]), temperature=1 / math.log(3)), [math.log(4 / 3)])


@few
@given(seeds)
def test_a_step_downhill_prefers_the_superior(seed):
    e, plus, minus = random_embeddings(seed)
    for loss in (lambda x: triplet_loss(x, plus, minus, 10.0), lambda x: info_nce_loss(x, plus, minus, 0.5)):
        x = e.clone().requires_grad_()
        loss(x).sum().backward()
        assert (loss(e - 1e-4 * x.grad) <= loss(e)).all()


@few
@given(seeds)
def test_equal_candidates_leave_no_preference(seed):
    e, plus, _ = random_embeddings(seed)
    close(info_nce_loss(e, plus, plus, 0.3), torch.full((3,), math.log(2)))
    close(triplet_loss(e, plus, plus, 0.3), torch.full((3,), 0.3))


def test_scales_are_averaged():
    e, plus, minus = random_embeddings(0, (2, 3, 5))
    for loss in (lambda *x: triplet_loss(*x, 1.0), lambda *x: info_nce_loss(*x, 0.5)):
        close(loss(e, plus, minus), torch.stack([loss(e[:, i], plus[:, i], minus[:, i]) for i in range(3)]).mean(0))
    six = random_embeddings(1, (2, 3, 5), 6)
    close(diffusion_margin(*six), torch.stack([diffusion_margin(*(x[:, i] for x in six)) for i in range(3)]).mean(0))


def test_gradients():
    e, plus, minus = random_embeddings(2)
    e.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: triplet_loss(x, plus, minus, 5.0), e)
    assert torch.autograd.gradcheck(lambda x: info_nce_loss(x, plus, minus, 0.5), e)
    assert torch.autograd.gradcheck(lambda x: diffusion_margin(x, plus, minus, minus, plus, plus), e)


def test_low_precision_is_lifted():
    e = [tensor.bfloat16() for tensor in random_embeddings(3)]
    assert triplet_loss(*e, 1.0).dtype == info_nce_loss(*e, 1.0).dtype == torch.float32
    assert diffusion_margin(*e, *e).dtype == torch.float32


Z = torch.zeros(1, 2)
ERRORS = {
    "shapes differ: e (1, 2), e_plus (2,), e_minus (1, 2)": lambda: triplet_loss(Z, Z[0], Z, 1.0),
    "margin must be a finite number > 0, got 0": lambda: triplet_loss(Z, Z, Z, 0),
    "temperature must be a finite number > 0, got nan": lambda: info_nce_loss(Z, Z, Z, math.nan),
    "embeddings must be (B, D) or (B, L, D), got 1 axes": lambda: info_nce_loss(Z[0], Z[0], Z[0], 1.0),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
