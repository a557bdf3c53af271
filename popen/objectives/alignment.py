"""Losses that tie words to places: a picture's tokens under a mask name it, and who names it looks there (ours)."""

import torch
import torch.nn.functional as F

from popen.objectives.shapes import check_same_shape, full_precision

LEAST = 1e-6  # of what is divided by, or looked at, in float32


def token_cover(masks: torch.Tensor, tokens: int) -> torch.Tensor:
    """How much of each picture token a mask covers.

    Args:
        masks: float (T, side, side) in 0..1. tokens: P of the picture, a square number.
    Returns:
        (T, P) in 0..1, row by row.
    Raises:
        ValueError: P is no square number.
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{tokens} picture tokens are no square: a mask cannot be laid over them")
    return F.adaptive_avg_pool2d(masks[:, None], side).flatten(1)


def pooled_tokens(tokens_TPH: torch.Tensor, cover_TP: torch.Tensor) -> torch.Tensor:
    """The mean of a picture's tokens, each as heavy as the share of it that the mask covers, (T, H); 0 for no cover.

    Raises:
        ValueError: the first two axes differ.
    """
    if tokens_TPH.shape[:2] != cover_TP.shape:
        raise ValueError(f"tokens {tuple(tokens_TPH.shape)} and cover {tuple(cover_TP.shape)} differ in (T, P)")
    weights = (cover_TP / cover_TP.sum(1, keepdim=True).clamp(min=LEAST)).to(tokens_TPH.dtype)
    return (weights[:, None] @ tokens_TPH)[:, 0]


def naming_loss(logits_TV: torch.Tensor, phrases_TW: torch.Tensor) -> torch.Tensor:
    """How badly each target's tokens are named: region-text alignment, as in RegionCLIP, in a form that is ours.

    ℓ_t = −1/|W_t| Σ_{w ∈ W_t} log p_w,   p = softmax of the logits

    Args:
        logits_TV: what the language model's output embedding makes of each target's pooled tokens.
        phrases_TW: int64 token ids of its phrase, padded with −1.
    Returns:
        (T,) losses, at least 0; 0 for a phrase without words.
    Raises:
        ValueError: not as many phrases as targets.
    """
    if len(logits_TV) != len(phrases_TW):
        raise ValueError(f"{len(logits_TV)} targets and {len(phrases_TW)} phrases; give each its own")
    logps, said = full_precision(logits_TV).log_softmax(-1), phrases_TW >= 0
    return -(logps.gather(1, phrases_TW.clamp(min=0)) * said).sum(1) / said.sum(1).clamp(min=1)


def looking_loss(attention_QP: torch.Tensor, cover_QP: torch.Tensor) -> torch.Tensor:
    """How little the tokens that name a target look at it (ours).

    ℓ_q = −log Σ_p a_{qp} c_{qp} / max_p c_{qp}

    Args:
        attention_QP: weights a of Q tokens on a picture's P tokens, in 0..1. cover_QP: how much of each token the
            target of q covers, in 0..1.
    Returns:
        (Q,) losses, at least 0.
    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(attention=attention_QP, cover=cover_QP)
    share = cover_QP / cover_QP.amax(1, keepdim=True).clamp(min=LEAST)
    return -(full_precision(attention_QP) * share).sum(1).clamp(min=LEAST).log()
