"""What an objective sees of preference pairs, and the objectives that the trainer can take.

An objective maps pairs to `PairLosses`; scores and losses are handed in as functions, so an arm of a study is a line:

    partial(text_dpo, score=partial(weighted_token_logps, weight=1.1), loss=partial(sigmoid_loss, beta=0.1))
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch

from popen.objectives.embeddings import info_nce_loss, triplet_loss
from popen.objectives.preference import offset_loss, simpo_loss
from popen.objectives.regions import region_margin
from popen.objectives.scores import mean_weighted_token_logps


@dataclass(frozen=True)
class Completions:
    """P answers padded to L tokens: log-probabilities under policy and reference, and which tokens count and changed.

    `logps`, `ref_logps` float (P, L); `mask`, `changed` bool (P, L).
    """

    logps: torch.Tensor
    ref_logps: torch.Tensor
    mask: torch.Tensor
    changed: torch.Tensor


@dataclass(frozen=True)
class TextPairs:
    """P corrected answers and the originals that they are preferred to."""

    chosen: Completions
    rejected: Completions


@dataclass(frozen=True)
class SegPairs:
    """N pairs of candidates for one target each.

    `embedding` is trained, `reference`, `superior`, `rejected` and `inferior` are frozen, all (N, L, D); the rejected
    candidate is the inferior one, or the medium one in curriculum stage 2. `logits`, `ref_logits` and `signs` (N, R)
    are the target's mask where the masks of superior and rejected differ, see `region_margin`; `gap` (N,) is the IoU
    of the superior candidate minus that of the rejected one, 0..1; `pixels` (N,) how many of the picture's count.
    """

    embedding: torch.Tensor
    reference: torch.Tensor
    superior: torch.Tensor
    rejected: torch.Tensor
    inferior: torch.Tensor
    logits: torch.Tensor
    ref_logits: torch.Tensor
    signs: torch.Tensor
    gap: torch.Tensor
    pixels: torch.Tensor


@dataclass(frozen=True)
class PairLosses:
    """Losses (P,) and, for the log, the rewards (P,) of both sides; their difference is the margin."""

    losses: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor


TokenScore = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # logps, mask, changed -> (P,)
MarginLoss = Callable[[torch.Tensor], torch.Tensor]
TextObjective = Callable[[TextPairs], PairLosses]
SegObjective = Callable[[SegPairs], PairLosses]


def text_dpo(pairs: TextPairs, score: TokenScore, loss: MarginLoss) -> PairLosses:
    """L_t: a loss on the difference of log-ratios of chosen and rejected answers (DPO; POPEN's L_t, reconstruction).

    h = [s(π_θ, y⁺) − s(π_ref, y⁺)] − [s(π_θ, y⁻) − s(π_ref, y⁻)]
    """
    chosen, rejected = (
        score(side.logps, side.mask, side.changed) - score(side.ref_logps, side.mask, side.changed)
        for side in (pairs.chosen, pairs.rejected)
    )
    return PairLosses(loss(chosen - rejected), chosen, rejected)


def text_simpo(pairs: TextPairs, beta: float, gamma: float) -> PairLosses:
    """L_t without a reference: `simpo_loss` on log-probabilities per token."""
    chosen, rejected = (
        mean_weighted_token_logps(side.logps, side.mask, side.changed, 1.0) for side in (pairs.chosen, pairs.rejected)
    )
    return PairLosses(simpo_loss(chosen, rejected, beta, gamma), chosen, rejected)


def seg_mask_dpo(pairs: SegPairs, loss: MarginLoss) -> PairLosses:
    """L_s in mask space: a loss on `region_margin` (candidate D; the default, a reconstruction)."""
    margin = region_margin(pairs.logits, pairs.ref_logits, pairs.signs)
    return _from_margin(margin, loss(margin))


def seg_mask_offset(pairs: SegPairs, beta: float, alpha: float) -> PairLosses:
    """L_s in mask space that asks for a larger margin where the IoU gap is larger: `offset_loss` (candidate E)."""
    margin = region_margin(pairs.logits, pairs.ref_logits, pairs.signs)
    return _from_margin(margin, offset_loss(margin, beta, pairs.gap, alpha))


def seg_embedding_dpo(pairs: SegPairs, margin: Callable[..., torch.Tensor], loss: MarginLoss) -> PairLosses:
    """L_s in embedding space: a loss on a margin of `popen.objectives.scores` (candidate A)."""
    h = margin(pairs.embedding, pairs.reference, pairs.superior, pairs.rejected)
    return _from_margin(h, loss(h))


def seg_triplet(pairs: SegPairs, margin: float) -> PairLosses:
    """L_s without a reference: `triplet_loss` (candidate C)."""
    return _nearness(pairs, triplet_loss(pairs.embedding, pairs.superior, pairs.rejected, margin))


def seg_medium_triplet(pairs: SegPairs, margin: float) -> PairLosses:
    """L_s of reading R2's second stage: the medium candidate is what is trained (POPEN, fig. 2b; reconstruction).

    The trainable forward sees the clean picture, so the medium embedding moves with it: a = e + (e_med − e_ref) is
    pulled to the superior and pushed from the inferior candidate by `triplet_loss`.
    """
    medium = pairs.embedding + pairs.rejected - pairs.reference
    return seg_triplet(replace(pairs, embedding=medium, rejected=pairs.inferior), margin)


def seg_gap_between(pairs: SegPairs, objective: SegObjective, least: float, most: float) -> PairLosses:
    """An objective on the pairs whose IoU gap lies in [least, most): a curriculum from clear pairs to close ones.

    Bounds come from quantiles of the mined gaps; what lies outside has no loss and no reward.
    """
    kept = (pairs.gap >= least) & (pairs.gap < most)
    return objective(SegPairs(**{field.name: getattr(pairs, field.name)[kept] for field in fields(pairs)}))


def seg_info_nce(pairs: SegPairs, temperature: float) -> PairLosses:
    """L_s without a reference: `info_nce_loss` (candidate C)."""
    return _nearness(pairs, info_nce_loss(pairs.embedding, pairs.superior, pairs.rejected, temperature))


def _from_margin(margin: torch.Tensor, losses: torch.Tensor) -> PairLosses:
    """A margin that does not split into two rewards: half of it is each side's."""
    return PairLosses(losses, margin / 2, -margin / 2)


def _nearness(pairs: SegPairs, losses: torch.Tensor) -> PairLosses:
    """Rewards are negative distances to the frozen candidates, the mean over scales."""
    chosen, rejected = (
        -torch.linalg.vector_norm(pairs.embedding - other, dim=-1).mean(1)
        for other in (pairs.superior, pairs.rejected)
    )
    return PairLosses(losses, chosen, rejected)
