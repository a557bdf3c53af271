"""One step for two losses that pull apart: the certain interior's and the uncertain boundary's.

Gradients are flat vectors (P,) of the same parameters, all of them or the last layer's. Two backward passes give them;
the step itself is cheap. That Pareto-guided optimisation (Zhang et al. 2026) takes one of these steps is a
reconstruction; the steps themselves are published.
"""

import math

import torch

from popen.objectives.shapes import check_same_shape, full_precision


def mgda_weight(grad_interior: torch.Tensor, grad_boundary: torch.Tensor) -> torch.Tensor:
    """Weight of the interior in the shortest convex combination of two gradients (MGDA, Désidéri 2012; closed form of
    Sener and Koltun 2018).

    α* = clip((g_B − g_I)ᵀ g_B / ‖g_I − g_B‖², 0, 1),   d = α* g_I + (1 − α*) g_B

    −d makes neither loss worse, to first order; d = 0 says that no step does better for both. A zero gradient is such
    a point: leave out a loss that has no pixels instead of handing in its zeros.

    Args:
        grad_interior, grad_boundary: g_I and g_B, float (P,).
    Returns:
        α* in 0..1, (); ½ where the gradients are equal, both zero included.
    Raises:
        ValueError: the shapes differ or are not (P,).
    """
    interior, boundary = _flat(grad_interior=grad_interior, grad_boundary=grad_boundary)
    apart = boundary - interior
    length = _dot(apart, apart)
    weight = _dot(apart, boundary) / torch.where(length > 0, length, 1)
    return torch.where(length > 0, weight.clamp(0, 1), 0.5)


def common_descent_weight(grad_interior: torch.Tensor, grad_boundary: torch.Tensor) -> torch.Tensor:
    """Weight of the interior in a combination that makes neither loss worse, as even as may be (reconstruction).

    α = ½ where g_I + g_B descends on both, g_I · (g_I + g_B) >= 0 and g_B · (g_I + g_B) >= 0;   else MGDA's α*

    MGDA alone weighs the longer gradient down even where the two do not conflict: of orthogonal ones by the square of
    their lengths, so that a boundary of few pixels, each with a large slope, is hardly learned.

    Args, Returns, Raises: as `mgda_weight`.
    """
    interior, boundary = _flat(grad_interior=grad_interior, grad_boundary=grad_boundary)
    both = interior + boundary
    agree = (_dot(interior, both) >= 0) & (_dot(boundary, both) >= 0)
    return torch.where(agree, 0.5, mgda_weight(grad_interior, grad_boundary))


def project_conflict(gradient: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A gradient without the part that would undo another one (PCGrad, Yu et al. 2020).

    g_i − min(0, g_iᵀ g_j) / ‖g_j‖² · g_j

    Args:
        gradient, other: g_i and g_j, float (P,).
    Returns:
        (P,); the gradient itself where the two agree or the other is zero, else orthogonal to the other.
    Raises:
        ValueError: the shapes differ or are not (P,).
    """
    gradient, other = _flat(gradient=gradient, other=other)
    length = _dot(other, other)
    return gradient - _dot(gradient, other).clamp(max=0) / torch.where(length > 0, length, 1) * other


def constraint_multiplier(multiplier: float, loss_interior: float, limit: float, rate: float) -> float:
    """Next multiplier of the ε-constraint: the boundary is learned while the interior stays below a limit.

    min L_B subject to L_I <= ε:   L = L_B + λ L_I,   λ ← [λ + η (L_I − ε)]₊

    Args:
        multiplier: λ >= 0 so far. loss_interior: L_I, measured. limit: ε. rate: η > 0.
    Returns:
        λ >= 0; it grows while the constraint is broken.
    Raises:
        ValueError: the multiplier is negative, a number is not finite, or the rate is not positive.
    """
    numbers = {"multiplier": multiplier, "loss_interior": loss_interior, "limit": limit, "rate": rate}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {number}")
    if multiplier < 0:
        raise ValueError(f"multiplier must be >= 0, got {multiplier}")
    if rate <= 0:
        raise ValueError(f"rate must be > 0, got {rate}")
    return max(0.0, multiplier + rate * (loss_interior - limit))


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum()  # and not a @ b, which autocast would do in half precision


def _flat(**gradients: torch.Tensor) -> list[torch.Tensor]:
    check_same_shape(**gradients)
    for name, gradient in gradients.items():
        if gradient.dim() != 1:
            raise ValueError(f"{name} must be (P,), got {tuple(gradient.shape)}")
    return [full_precision(gradient) for gradient in gradients.values()]
