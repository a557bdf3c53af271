"""Which of several answers to prefer: a linear Bradley-Terry score of what speaks for each.

Knows evidence and qualities; not where they come from.
"""

import torch

from popen.objectives.preference import bradley_terry_loss

RIDGE = 1e-3


def answer_scores(evidence_KF: torch.Tensor, weights_F: torch.Tensor) -> torch.Tensor:
    """Preference scores of one question's K answers, (K,); only differences mean anything (reconstruction).

    s_k = w · f_k

    Raises:
        ValueError: evidence and weights differ in F.
    """
    if evidence_KF.shape[-1:] != weights_F.shape:
        raise ValueError(f"evidence {tuple(evidence_KF.shape)} and weights {tuple(weights_F.shape)} differ in F")
    return evidence_KF @ weights_F.to(evidence_KF)


def preferred_answer(evidence_KF: torch.Tensor, weights_F: torch.Tensor) -> int:
    """The answer with the highest score; the first of equal ones."""
    scores = answer_scores(evidence_KF, weights_F)
    return int((scores == scores.max()).nonzero()[0])


def fit_answer_weights(
    evidence: list[torch.Tensor], qualities: list[torch.Tensor], margin: float, prior_F: torch.Tensor
) -> torch.Tensor:
    """The w of `answer_scores` under which better answers win most likely, float64 (F,).

    Over all pairs of answers to one question, with a small ridge around a prior on standardised evidence: convex, so
    neither seed nor learning rate matter.

    Args:
        evidence: per question (K, F), K may differ. qualities: per question (K,), higher is better.
        margin: pairs whose qualities are closer than this say nothing, > 0.
        prior_F: the weights where no pair says anything.
    """
    better, worse = [], []
    for own, quality in zip(evidence, qualities, strict=True):
        wins, loses = ((quality[:, None] - quality[None]) >= margin).nonzero(as_tuple=True)
        better.append(own[wins])
        worse.append(own[loses])
    chosen, rejected = torch.cat(better).double(), torch.cat(worse).double()
    if len(chosen) == 0:
        return prior_F.double()
    scale = (chosen - rejected).square().mean(0).sqrt().clamp(min=1e-12)
    prior = prior_F.double() * scale
    weights = prior.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = bradley_terry_loss((chosen / scale) @ weights, (rejected / scale) @ weights).mean()
        loss = loss + RIDGE * (weights - prior).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach() / scale
