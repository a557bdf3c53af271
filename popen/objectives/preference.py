"""Preference losses: a margin h (B,), chosen over rejected relative to the reference, to a loss (B,).

h > 0 says that the policy prefers the chosen candidate more than the reference does. The margins come from
`popen.objectives.scores`; the caller reduces the losses. On log-ratio sums the formulas are those of TRL's DPOTrainer.
"""

import math

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_same_shape, full_precision


def sigmoid_loss(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """Negative log-likelihood of the preference under Bradley-Terry (DPO, Rafailov et al. 2023, Eq. 7).

    ℓ = −log σ(β h)

    Args:
        margin: h, float (B,).
        beta: β > 0, in 1 / units of h.
    Returns:
        (B,) losses > 0; ln 2 at h = 0.
    Raises:
        ValueError: the margin is not 1-D, or beta is not a positive number.
    """
    return -F.logsigmoid(_scaled(margin, beta))


def hinge_loss(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """Hinge on the scaled margin (SLiC, Zhao et al. 2023; on log-ratios as in RSO, Liu et al. 2024).

    ℓ = max(0, 1 − β h)

    Args, Raises: as `sigmoid_loss`.
    Returns:
        (B,) losses >= 0; exactly 0, and without gradient, once h >= 1/β.
    """
    return torch.relu(1 - _scaled(margin, beta))


def ipo_loss(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """Squared distance of the margin to a finite target, so that it cannot run away (IPO, Azar et al. 2023, Eq. 17).

    ℓ = (h − 1/(2β))²

    The target does not know how long the answer is or how large the region: give it a mean margin
    (`mean_weighted_token_logps`, `mask_margin_region_mean`), as TRL does for tokens.

    Args, Raises: as `sigmoid_loss`; β is the paper's τ.
    Returns:
        (B,) losses >= 0; 0 at h = 1/(2β).
    """
    _check_margin(margin, beta)
    return (full_precision(margin) - 1 / (2 * beta)).square()


def conservative_loss(margin: torch.Tensor, beta: float, label_smoothing: float) -> torch.Tensor:
    """Cross-entropy against labels that are wrong with probability ε (cDPO, Mitchell 2023).

    ℓ = −(1 − ε) log σ(β h) − ε log σ(−β h)

    Smallest at σ(β h) = 1 − ε: the margin has a finite target instead of infinity.

    Args:
        margin, beta: as `sigmoid_loss`.
        label_smoothing: ε in [0, 0.5), the share of swapped pairs.
    Returns:
        (B,) losses > 0; `sigmoid_loss` at ε = 0.
    Raises:
        ValueError: the margin is not 1-D, beta is not a positive number, or ε is out of range.
    """
    _check_smoothing(label_smoothing)
    scaled = _scaled(margin, beta)
    return -(1 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)


def robust_loss(margin: torch.Tensor, beta: float, label_smoothing: float) -> torch.Tensor:
    """Unbiased estimate of the clean DPO loss from labels swapped with probability ε (rDPO, Chowdhury et al. 2024).

    ℓ = [−(1 − ε) log σ(β h) + ε log σ(−β h)] / (1 − 2ε)

    In expectation over the swaps, (1 − ε) ℓ(h) + ε ℓ(−h) = −log σ(β h). Unbounded below as h grows: anchor it.

    Args, Raises: as `conservative_loss`.
    Returns:
        (B,) losses of either sign; `sigmoid_loss` at ε = 0.
    """
    _check_smoothing(label_smoothing)
    scaled = _scaled(margin, beta)
    clean, swapped = -F.logsigmoid(scaled), -F.logsigmoid(-scaled)
    return ((1 - label_smoothing) * clean - label_smoothing * swapped) / (1 - 2 * label_smoothing)


def offset_loss(margin: torch.Tensor, beta: float, gap: torch.Tensor, alpha: float) -> torch.Tensor:
    """DPO that asks for a larger margin where the judge saw a larger gap (ODPO, Amini et al. 2024).

    ℓ = −log σ(β h − α Δ)

    ODPO takes Δ as a function of the two scores, such as the log of their difference. Δ = IoU⁺ − IoU⁻ for masks is our
    reconstruction (candidate E).

    Args:
        margin, beta: as `sigmoid_loss`.
        gap: Δ, float (B,), the judge's score of the chosen minus that of the rejected; 0..1 for IoU.
        alpha: α >= 0, in 1 / units of the gap.
    Returns:
        (B,) losses > 0; `sigmoid_loss` at α = 0.
    Raises:
        ValueError: margin or gap is not (B,), beta is not a positive number, or alpha is negative or not finite.
    """
    check_same_shape(margin=margin, gap=gap)
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be a finite number >= 0, got {alpha}")
    return -F.logsigmoid(_scaled(margin, beta) - alpha * full_precision(gap))


def simpo_loss(
    mean_logps_chosen: torch.Tensor, mean_logps_rejected: torch.Tensor, beta: float, gamma: float
) -> torch.Tensor:
    """Preference loss without a reference, on log-probabilities per token (SimPO, Meng et al. 2024, Eq. 6).

    ℓ = −log σ(β (log π(y⁺)/|y⁺| − log π(y⁻)/|y⁻|) − γ)

    Args:
        mean_logps_chosen, mean_logps_rejected: float (B,), such as `mean_weighted_token_logps` with weight 1.
        beta: β > 0, in tokens per nat; the paper takes 2 to 2.5. gamma: γ >= 0, the margin asked for.
    Returns:
        (B,) losses > 0.
    Raises:
        ValueError: the log-probabilities are not both (B,), beta is not positive, or gamma is negative or not finite.
    """
    check_same_shape(mean_logps_chosen=mean_logps_chosen, mean_logps_rejected=mean_logps_rejected)
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be a finite number >= 0, got {gamma}")
    margin = full_precision(mean_logps_chosen) - full_precision(mean_logps_rejected)
    return -F.logsigmoid(_scaled(margin, beta) - gamma)


def bradley_terry_loss(score_chosen: torch.Tensor, score_rejected: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of a preference under two scores (Bradley & Terry 1952), for the preference head.

    ℓ = −log σ(s⁺ − s⁻)

    Args:
        score_chosen, score_rejected: s⁺ and s⁻, float (B,).
    Returns:
        (B,) losses > 0; ln 2 where the scores are equal.
    Raises:
        ValueError: the scores are not both (B,).
    """
    check_same_shape(score_chosen=score_chosen, score_rejected=score_rejected)
    return sigmoid_loss(full_precision(score_chosen) - full_precision(score_rejected), beta=1.0)


def _scaled(margin: torch.Tensor, beta: float) -> torch.Tensor:
    _check_margin(margin, beta)
    return beta * full_precision(margin)


def _check_margin(margin: torch.Tensor, beta: float) -> None:
    if margin.dim() != 1:
        raise ValueError(f"margin must be (B,), got {tuple(margin.shape)}")
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be a finite number > 0, got {beta}")


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:  # at 0.5 the labels say nothing, beyond it the opposite; NaN fails too
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
