"""Trains the preference head on P_s: which of two mask hypotheses of one target is better."""

from collections.abc import Callable

import datasets
import torch
from torch.nn.functional import mse_loss
from tqdm.auto import trange

from popen.data.preference_schema import TargetPreference
from popen.lvlm.preference_head import PreferenceHead
from popen.objectives.preference import bradley_terry_loss


def head_tensors(seg: datasets.Dataset, scales: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Evidence (T, K+1, F) and IoUs (T, K+1) of every target with a ranking.

    Raises:
        ValueError: no target was kept.
    """
    kept = [TargetPreference.from_row(target, scales) for row in seg for target in row["targets"]]
    if not kept:
        raise ValueError("no segmentation preference was kept; mine more pictures or lower the margin")
    evidence = torch.stack([torch.from_numpy(p.evidence) for p in kept])
    return evidence, torch.stack([torch.from_numpy(p.ious) for p in kept])


def train_head(
    head: PreferenceHead,
    evidence_TKF: torch.Tensor,
    ious_TK: torch.Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    margin: float,
    seed: int,
) -> list[float]:
    """Bradley-Terry over all pairs of a target's hypotheses whose IoUs differ by `margin`; returns the losses."""

    def loss_of(scores: torch.Tensor, ious: torch.Tensor) -> torch.Tensor | None:
        better = (ious[:, :, None] - ious[:, None, :]) >= margin
        target, chosen, rejected = better.nonzero(as_tuple=True)
        if len(target) == 0:
            return None
        return bradley_terry_loss(scores[target, chosen], scores[target, rejected]).mean()

    return _train(head, evidence_TKF, ious_TK, steps, batch_size, learning_rate, seed, loss_of)


def train_regression_head(
    head: PreferenceHead,
    evidence_TKF: torch.Tensor,
    ious_TK: torch.Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """The control of `train_head`: the same network regresses IoU by squared error; returns the losses."""
    return _train(head, evidence_TKF, ious_TK, steps, batch_size, learning_rate, seed, mse_loss)


def _train(
    head: PreferenceHead,
    evidence_TKF: torch.Tensor,
    ious_TK: torch.Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None],
) -> list[float]:
    """Minimises `loss_of(scores, ious)` of drawn targets; a batch whose loss is None is passed over."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in trange(steps, desc="preference head", unit="step"):
        batch = torch.randint(len(ious_TK), (min(batch_size, len(ious_TK)),), generator=generator)
        loss = loss_of(head(evidence_TKF[batch]), ious_TK[batch])
        if loss is None:
            continue
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def pair_accuracy(head: PreferenceHead, evidence_TKF: torch.Tensor, ious_TK: torch.Tensor, margin: float) -> float:
    """Share of pairs, IoUs `margin` apart, that the head orders as the IoUs do; 0..1."""
    scores = head(evidence_TKF)
    better = (ious_TK[:, :, None] - ious_TK[:, None, :]) >= margin
    right = scores[:, :, None] > scores[:, None, :]
    return float((better & right).sum() / better.sum().clamp(min=1))
