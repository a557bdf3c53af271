"""The step for two losses: by hand, as the shortest convex combination, and on equal and absent gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.objectives.pareto import common_descent_weight, constraint_multiplier, mgda_weight, project_conflict

few = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def close(actual, expected, **kwargs):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **kwargs)


def gradients(seed, size=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, size, generator=generator, dtype=torch.float64)


def combined(interior, boundary):
    weight = mgda_weight(interior, boundary)
    return weight * interior + (1 - weight) * boundary


def test_mgda_on_a_conflicting_pair_by_hand():
    """g_I = (1, 0), g_B = (−0.2, 1): α* = (−1.2 · −0.2 + 1) / (1.2² + 1) = 1.24 / 2.44 = 0.5082.

    d = (0.4098, 0.4918), with the inner product 1 / 2.44 = 0.40984 with both.
    """
    interior, boundary = torch.tensor([1.0, 0.0]), torch.tensor([-0.2, 1.0])
    close(mgda_weight(interior, boundary), 1.24 / 2.44)
    d = combined(interior, boundary)
    close(torch.stack([d @ interior, d @ boundary]), [0.40984, 0.40984], atol=1e-5, rtol=0)


def test_mgda_takes_the_shorter_gradient_when_the_other_is_longer_the_same_way():
    long, short = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.5])
    assert mgda_weight(short, long) == 1 and mgda_weight(long, short) == 0


def test_mgda_on_equal_and_zero_gradients():
    g, zero = torch.tensor([1.0, -2.0]), torch.zeros(2)
    assert mgda_weight(g, g) == 0.5 and mgda_weight(zero, zero) == 0.5
    assert mgda_weight(zero, g) == 1 and mgda_weight(g, zero) == 0  # the point is stationary for one: d = 0
    assert not combined(zero, g).any() and not combined(g, zero).any()
    assert mgda_weight(torch.zeros(0), torch.zeros(0)) == 0.5


def test_gradients_that_do_not_conflict_weigh_the_same():
    """Orthogonal, one nine times as long: MGDA gives the long one 1/82 of the weight."""
    short, long = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 9.0])
    close(1 - mgda_weight(short, long), 1 / 82)
    assert common_descent_weight(short, long) == common_descent_weight(long, short) == 0.5
    assert common_descent_weight(torch.zeros(2), long) == 0.5  # no interior: the boundary is learned alone


def test_gradients_that_conflict_are_weighed_by_mgda():
    """g_I = (1, 0), g_B = (−3, 1): the sum (−2, 1) climbs on the interior's loss."""
    interior, boundary = torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 1.0])
    weight = common_descent_weight(interior, boundary)
    assert weight == mgda_weight(interior, boundary) != 0.5
    d = weight * interior + (1 - weight) * boundary
    assert d @ interior >= 0 and d @ boundary >= 0


@few
@given(seeds)
def test_a_common_descent_makes_neither_worse(seed):
    interior, boundary = gradients(seed, size=2)
    weight = common_descent_weight(interior, 5 * boundary)
    d = weight * interior + (1 - weight) * 5 * boundary
    assert d @ interior >= -1e-9 and d @ boundary >= -1e-9


@few
@given(seeds)
def test_mgda_is_the_shortest_combination_and_a_descent_for_both(seed):
    interior, boundary = gradients(seed)
    d = combined(interior, boundary)
    weights = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    assert (d.norm() <= (weights * interior + (1 - weights) * boundary).norm(dim=1) + 1e-12).all()
    assert min(d @ interior, d @ boundary) >= d @ d - 1e-12
    close(mgda_weight(boundary, interior), 1 - mgda_weight(interior, boundary))


def test_projection_by_hand():
    """g = (1, 0) against (−1, 1): g·o = −1, ‖o‖² = 2, so (1, 0) + ½ (−1, 1) = (½, ½)."""
    g, against = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    close(project_conflict(g, against), [0.5, 0.5])
    assert torch.equal(project_conflict(g, -against), g)
    assert torch.equal(project_conflict(g, torch.zeros(2)), g)
    close(project_conflict(g, -3 * g), [0.0, 0.0])


@few
@given(seeds)
def test_a_projected_gradient_opposes_no_longer_and_is_no_longer(seed):
    gradient, other = gradients(seed)
    projected = project_conflict(gradient, other)
    assert projected @ other >= -1e-12 and projected.norm() <= gradient.norm() + 1e-12
    if gradient @ other < 0:
        close(projected @ other, 0.0, atol=1e-12, rtol=0)
        close(project_conflict(projected, other), projected)
    else:
        assert torch.equal(projected, gradient)


def test_multiplier_by_hand():
    """λ = 0.5, η = 2: L_I 0.1 over the limit gives 0.7, 0.5 under it 0."""
    assert constraint_multiplier(0.5, 0.4, 0.3, 2) == pytest.approx(0.7)
    assert constraint_multiplier(0.5, 0.3, 0.3, 2) == 0.5
    assert constraint_multiplier(0.5, 0.0, 0.5, 2) == 0


def test_the_multiplier_finds_the_best_point_that_keeps_the_limit():
    """min (x − 1)² subject to x² <= ¼, by descent on L_B + λ L_I: x = ½ and λ = (1 − x)/x = 1."""
    x, multiplier = torch.zeros((), dtype=torch.float64, requires_grad=True), 0.0
    for _ in range(2000):
        (grad,) = torch.autograd.grad((x - 1) ** 2 + multiplier * x**2, x)
        x = (x - 0.05 * grad).detach().requires_grad_()
        multiplier = constraint_multiplier(multiplier, x.item() ** 2, 0.25, 0.1)
    assert x.item() == pytest.approx(0.5, abs=1e-4) and multiplier == pytest.approx(1.0, abs=1e-3)


def test_low_precision_is_lifted():
    interior, boundary = gradients(0).to(torch.bfloat16)
    for step in (mgda_weight, project_conflict):
        with torch.autocast("cpu", torch.bfloat16):
            lifted = step(interior, boundary)
        assert lifted.dtype == torch.float32
        close(lifted, step(interior.float(), boundary.float()))


G = torch.zeros(3)
ERRORS = {
    "shapes differ: grad_interior (3,), grad_boundary (2,)": lambda: mgda_weight(G, G[:2]),
    "grad_interior must be (P,), got (1, 3)": lambda: mgda_weight(G[None], G[None]),
    "shapes differ: gradient (3,), other (1, 3)": lambda: project_conflict(G, G[None]),
    "gradient must be (P,), got ()": lambda: project_conflict(G[0], G[0]),
    "multiplier must be >= 0, got -1": lambda: constraint_multiplier(-1, 0.0, 0.0, 1.0),
    "rate must be > 0, got 0": lambda: constraint_multiplier(1.0, 0.0, 0.0, 0),
    "loss_interior must be a finite number, got nan": lambda: constraint_multiplier(1.0, math.nan, 0.0, 1.0),
    "limit must be a finite number, got inf": lambda: constraint_multiplier(1.0, 0.0, math.inf, 1.0),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
