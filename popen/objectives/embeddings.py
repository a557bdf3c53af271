"""Embedding preferences that are no margin of one embedding against its reference: two forwards, or no reference.

Margins with a reference are in `popen.objectives.scores`. Embeddings are (B, D), or (B, L, D) with one per codebook
scale; scales are averaged.
"""

import math

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_same_shape, full_precision


def diffusion_margin(
    e_plus: torch.Tensor,
    e_plus_ref: torch.Tensor,
    target_plus: torch.Tensor,
    e_minus: torch.Tensor,
    e_minus_ref: torch.Tensor,
    target_minus: torch.Tensor,
) -> torch.Tensor:
    """Preference margin in which each side has a forward of its own (Diffusion-DPO, Wallace et al. 2024, Eq. 14;
    on embeddings a reconstruction, candidate B).

    h = −½ [(‖e⁺ − t⁺‖² − ‖e⁺_ref − t⁺‖²) − (‖e⁻ − t⁻‖² − ‖e⁻_ref − t⁻‖²)]

    DPO under a Gaussian policy of variance 1. With one view on both sides (e⁺ = e⁻ and the same reference) the squares
    cancel and half of `embedding_squared_margin` is left, without an attractor.

    Args:
        e_plus, e_minus: trained embeddings of the superior's and the inferior's view.
        e_plus_ref, e_minus_ref: the same from the frozen reference. target_plus, target_minus: frozen candidates.
    Returns:
        (B,) margins in squared units of the embedding; 0 at the reference.
    Raises:
        ValueError: the six shapes differ or are neither (B, D) nor (B, L, D).
    """
    check_same_shape(
        e_plus=e_plus, e_plus_ref=e_plus_ref, target_plus=target_plus,
        e_minus=e_minus, e_minus_ref=e_minus_ref, target_minus=target_minus,
    )  # fmt: skip
    plus = _squared(e_plus, target_plus) - _squared(e_plus_ref, target_plus)
    minus = _squared(e_minus, target_minus) - _squared(e_minus_ref, target_minus)
    return -0.5 * (plus - minus)


def triplet_loss(e: torch.Tensor, e_plus: torch.Tensor, e_minus: torch.Tensor, margin: float) -> torch.Tensor:
    """Hinge on two distances, without a reference (Schroff et al. 2015, unsquared; POPEN's figure read literally,
    candidate C).

    ℓ = max(0, m + ‖e − e⁺‖ − ‖e − e⁻‖)

    Args:
        e: the trained embedding. e_plus, e_minus: frozen embeddings of the superior and the inferior candidate.
        margin: m > 0, in units of the embedding.
    Returns:
        (B,) losses >= 0; 0, and without gradient, once e is m nearer to e⁺ than to e⁻.
    Raises:
        ValueError: the three shapes differ or are neither (B, D) nor (B, L, D), or the margin is not positive.
    """
    check_same_shape(e=e, e_plus=e_plus, e_minus=e_minus)
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"margin must be a finite number > 0, got {margin}")
    gap = _distance(e, e_plus) - _distance(e, e_minus)
    return _over_scales(torch.relu(margin + gap))


def info_nce_loss(e: torch.Tensor, e_plus: torch.Tensor, e_minus: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of naming the superior candidate by cosine, without a reference (van den Oord et al. 2018 with
    one negative; candidate C).

    ℓ = −log [exp(cos(e, e⁺)/τ) / (exp(cos(e, e⁺)/τ) + exp(cos(e, e⁻)/τ))]

    Args, Raises: as `triplet_loss`; temperature τ > 0.
    Returns:
        (B,) losses > 0; ln 2 where both are equally near.
    """
    check_same_shape(e=e, e_plus=e_plus, e_minus=e_minus)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}")
    e, e_plus, e_minus = (full_precision(tensor) for tensor in (e, e_plus, e_minus))
    gap = F.cosine_similarity(e, e_plus, dim=-1) - F.cosine_similarity(e, e_minus, dim=-1)
    return _over_scales(-F.logsigmoid(gap / temperature))


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _over_scales((full_precision(a) - full_precision(b)).square().sum(-1))


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(full_precision(a) - full_precision(b), dim=-1)


def _over_scales(values: torch.Tensor) -> torch.Tensor:
    """(B,) as it is, (B, L) as its mean over L."""
    if values.dim() not in (1, 2):
        raise ValueError(f"embeddings must be (B, D) or (B, L, D), got {values.dim() + 1} axes")
    return values if values.dim() == 1 else values.mean(1)
