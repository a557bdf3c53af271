"""Scores and margins: how much more than the reference a policy prefers the chosen candidate.

Tokens give log-probabilities per sequence, masks and embeddings give margins h (B,) for `popen.objectives.preference`.
Mask margins from the values on the region alone are in `popen.objectives.regions`.
Everything is computed in float32 or better, also under autocast.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_bool, check_same_shape, full_precision


def per_token_logps(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of each label under its logits.

    log p_i = z_{i, y_i} − log Σ_v exp z_{i,v}

    Args:
        logits: float (..., V), already aligned: `logits[i]` predicts `labels[i]`; nothing is shifted here.
        labels: int64 (...), each in 0..V-1.
    Returns:
        (...) natural log-probabilities, at most 0.
    Raises:
        ValueError: labels do not have the shape of the logits without V.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"shapes differ: logits {tuple(logits.shape)} without V, labels {tuple(labels.shape)}")
    logits = full_precision(logits)
    return logits.gather(-1, labels[..., None])[..., 0] - logits.logsumexp(-1)


def token_logps(logits_BLV: torch.Tensor, labels_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Log-probability of each sequence's masked tokens.

    log π(y|x) = Σ_{i: mask_i} log p(y_i | x, y_{<i})

    Args:
        logits_BLV: float (B, L, V), already aligned: position i predicts label i; nothing is shifted here.
        labels_BL: int64 (B, L), 0..V-1 where the mask is True, anything (such as −100) elsewhere.
        mask_BL: bool (B, L), True on the tokens that count.
    Returns:
        (B,) sums in nats; 0 where no token counts.
    Raises:
        ValueError: shapes differ, or the mask is not bool.
    """
    check_same_shape(labels=labels_BL, mask=mask_BL)
    check_bool(mask=mask_BL)
    logps = per_token_logps(logits_BLV, labels_BL.masked_fill(~mask_BL, 0))
    return _masked_sum(logps, mask_BL)


def weighted_token_logps(
    logps: torch.Tensor, mask: torch.Tensor, changed: torch.Tensor, weight: float
) -> torch.Tensor:
    """Sequence log-probability in which changed tokens weigh γ (DDPO of RLHF-V, without length averaging).

    log π(y|x) = Σ_{i∉L_y} log p_i + γ Σ_{i∈L_y} log p_i

    RLHF-V's released run uses this form, γ = 1.1 and β = 0.1. That POPEN weighs its token index lists L_y and L_yc
    this way is our reconstruction.

    Args:
        logps: float (B, L) log-probabilities per token.
        mask: bool (B, L), True on the tokens of the answer.
        changed: bool (B, L), True on L_y; outside the mask it has no effect.
        weight: γ > 0.
    Returns:
        (B,) weighted sums in nats; 0 where no token counts.
    Raises:
        ValueError: shapes differ, mask or changed is not bool, or the weight is not a positive number.
    """
    return (_token_weights(logps, mask, changed, weight) * _kept(logps, mask)).sum(1)


def mean_weighted_token_logps(
    logps: torch.Tensor, mask: torch.Tensor, changed: torch.Tensor, weight: float
) -> torch.Tensor:
    """Mean log-probability per token in which changed tokens weigh γ (RLHF-V, Eq. DDPO).

    log π(y|x) = 1/N · [Σ_{i∉L_y} log p_i + γ Σ_{i∈L_y} log p_i],   N = n_unchanged + γ n_changed

    The paper's text averages (γ = 5, β = 0.5, recalled); its released run does not: see `weighted_token_logps`.

    Args, Raises: as `weighted_token_logps`.
    Returns:
        (B,) weighted means in nats per token; 0 where no token counts.
    """
    weights = _token_weights(logps, mask, changed, weight)
    count = weights.sum(1)  # may lie below 1 when γ does, so only an empty sequence is guarded
    return (weights * _kept(logps, mask)).sum(1) / torch.where(count > 0, count, 1)


def changed_token_logps(logps: torch.Tensor, mask: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    """Log-probability of the changed tokens alone, the limit γ → ∞ of DDPO up to scale (reconstruction).

    log π(y|x) = Σ_{i∈L_y} log p_i

    Args, Raises: as `weighted_token_logps`, without a weight.
    Returns:
        (B,) sums in nats; 0 for the side of a pair that only lost words.
    """
    check_same_shape(logps=logps, mask=mask, changed=changed)
    check_bool(mask=mask, changed=changed)
    return _masked_sum(logps, mask & changed)


def mask_margin_sum(
    logits: torch.Tensor, ref_logits: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor
) -> torch.Tensor:
    """Preference margin between two masks, summed over the pixels on which they disagree (DPO on masks).

    h_b = Σ_{i∈R_b} (y⁺_i − y⁻_i)(z_i − zʳᵉᶠ_i),   R_b = {i : y⁺_i ≠ y⁻_i}

    Exactly the log-ratio difference of DPO (Rafailov et al. 2023, Eq. 7) for a mask policy of independent Bernoulli
    pixels: agreeing pixels cancel and log σ(z) − log σ(−z) = z. Its gradient grows with |R|.

    Args:
        logits, ref_logits: mask logits of policy and reference, float (B, *spatial), 2-D or 3-D.
        chosen, rejected: bool (B, *spatial).
    Returns:
        (B,) margins in nats; 0 where the masks agree everywhere.
    Raises:
        ValueError: the four shapes differ, or chosen or rejected is not bool.
    """
    return _signed_gain(logits, ref_logits, chosen, rejected)[0].sum(1)


def mask_margin_image_mean(
    logits: torch.Tensor, ref_logits: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor
) -> torch.Tensor:
    """Preference margin between two masks, averaged over all pixels: the dead variant, kept as a control.

    h_b = 1/|Ω| · Σ_{i∈R_b} (y⁺_i − y⁻_i)(z_i − zʳᵉᶠ_i)

    What −BCE(reduction="mean") as log-likelihood amounts to. With |R| ≪ |Ω| the loss never leaves ln 2.

    Args, Raises: as `mask_margin_sum`.
    Returns:
        (B,) margins in nats per pixel.
    """
    return _signed_gain(logits, ref_logits, chosen, rejected)[0].mean(1)


def mask_margin_region_mean(
    logits: torch.Tensor, ref_logits: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor
) -> torch.Tensor:
    """Mean preference margin over the pixels on which two masks disagree (RN-DPO; equation reconstructed).

    h_b = 1/|R_b| · Σ_{i∈R_b} (y⁺_i − y⁻_i)(z_i − zʳᵉᶠ_i),   R_b = {i : y⁺_i ≠ y⁻_i}

    Dividing by |R| gives every pair the same total gradient, so a noisy judge cannot win by the size of its mistake.

    Args, Raises: as `mask_margin_sum`.
    Returns:
        (B,) margins in logits; 0 where the masks agree everywhere.
    """
    gain, sign = _signed_gain(logits, ref_logits, chosen, rejected)
    return gain.sum(1) / sign.abs().sum(1).clamp(min=1)


def embedding_cosine_margin(
    e: torch.Tensor, e_ref: torch.Tensor, e_plus: torch.Tensor, e_minus: torch.Tensor
) -> torch.Tensor:
    """Preference margin of an embedding by cosine similarity (POPEN's L_s; equation reconstructed, candidate A).

    h = [cos(e, e⁺) − cos(e_ref, e⁺)] − [cos(e, e⁻) − cos(e_ref, e⁻)]

    Blind to the length of e, so a keep or supervised term has to hold the length.

    Args:
        e: the trained embedding, float (B, D) or one per codebook scale (B, L, D).
        e_ref: the same embedding from the frozen reference.
        e_plus, e_minus: frozen embeddings of the superior and the inferior candidate.
    Returns:
        (B,) margins in −4..4, the mean over scales; 0 where e = e_ref.
    Raises:
        ValueError: the four shapes differ or are neither (B, D) nor (B, L, D).
    """
    return _embedding_margin(lambda a, b: F.cosine_similarity(a, b, dim=-1), e, e_ref, e_plus, e_minus)


def embedding_distance_margin(
    e: torch.Tensor, e_ref: torch.Tensor, e_plus: torch.Tensor, e_minus: torch.Tensor
) -> torch.Tensor:
    """Preference margin of an embedding by Euclidean distance (POPEN's L_s; equation reconstructed, candidate A).

    h = [‖e_ref − e⁺‖ − ‖e − e⁺‖] − [‖e_ref − e⁻‖ − ‖e − e⁻‖]

    Unsquared on purpose: by the triangle inequality h is bounded in e, and e = e⁺ reaches the bound. So does the ray
    beyond e⁺, away from e⁻, so keep an attracting term. For the squared form see `embedding_squared_margin`.

    Args, Raises: as `embedding_cosine_margin`.
    Returns:
        (B,) margins in units of the embedding, the mean over scales; 0 where e = e_ref.
    """
    return _embedding_margin(lambda a, b: -torch.linalg.vector_norm(a - b, dim=-1), e, e_ref, e_plus, e_minus)


def embedding_squared_margin(
    e: torch.Tensor, e_ref: torch.Tensor, e_plus: torch.Tensor, e_minus: torch.Tensor
) -> torch.Tensor:
    """Preference margin of an embedding by squared distance: a control without an attractor.

    h = [‖e_ref − e⁺‖² − ‖e − e⁺‖²] − [‖e_ref − e⁻‖² − ‖e − e⁻‖²] = 2 (e − e_ref)ᵀ(e⁺ − e⁻)

    Both ‖e‖² cancel, which leaves a function linear in e: its gradient 2(e⁺ − e⁻) is the same everywhere, also at e⁺,
    so training drives e along e⁺ − e⁻ without end. The same as Diffusion-DPO's form with one input for both sides.
    Use it only beside a term that attracts (candidate A' of the reconstruction).

    Args, Raises: as `embedding_cosine_margin`.
    Returns:
        (B,) margins in squared units of the embedding, the mean over scales; 0 where e = e_ref.
    """
    return _embedding_margin(lambda a, b: -(a - b).square().sum(-1), e, e_ref, e_plus, e_minus)


def _kept(logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # filled, not multiplied: a padding token may have probability 0, and 0 · −∞ is not a number
    return full_precision(logps).masked_fill(~mask, 0)


def _masked_sum(logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _kept(logps, mask).sum(1)


def _token_weights(logps: torch.Tensor, mask: torch.Tensor, changed: torch.Tensor, weight: float) -> torch.Tensor:
    """γ on changed tokens, 1 on the others, 0 outside the mask."""
    check_same_shape(logps=logps, mask=mask, changed=changed)
    check_bool(mask=mask, changed=changed)
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"weight must be a finite number > 0, got {weight}")
    return full_precision(mask).masked_fill(mask & changed, weight)


def _signed_gain(
    logits: torch.Tensor, ref_logits: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y⁺ − y⁻)(z − zʳᵉᶠ) and y⁺ − y⁻, both (B, pixels)."""
    check_same_shape(logits=logits, ref_logits=ref_logits, chosen=chosen, rejected=rejected)
    check_bool(chosen=chosen, rejected=rejected)
    sign = (full_precision(chosen) - full_precision(rejected)).flatten(1)  # +1, −1, and 0 outside R
    return sign * (full_precision(logits) - full_precision(ref_logits)).flatten(1), sign


def _embedding_margin(
    similarity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    e: torch.Tensor,
    e_ref: torch.Tensor,
    e_plus: torch.Tensor,
    e_minus: torch.Tensor,
) -> torch.Tensor:
    """[s(e, e⁺) − s(e_ref, e⁺)] − [s(e, e⁻) − s(e_ref, e⁻)], the mean over scales."""
    check_same_shape(e=e, e_ref=e_ref, e_plus=e_plus, e_minus=e_minus)
    if e.dim() not in (2, 3):
        raise ValueError(f"embeddings must be (B, D) or (B, L, D), got {tuple(e.shape)}")
    e, e_ref, e_plus, e_minus = (full_precision(tensor) for tensor in (e, e_ref, e_plus, e_minus))
    gain = similarity(e, e_plus) - similarity(e_ref, e_plus)
    h = gain - (similarity(e, e_minus) - similarity(e_ref, e_minus))
    return h if h.dim() == 1 else h.mean(1)
