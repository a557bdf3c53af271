"""Which of several answers to prefer: the one that stays likely when the picture is looked at again.

Knows log-probabilities and qualities; not where they come from.
"""

import torch


def preferred_answer(logps_KV: torch.Tensor, margin: float) -> int:
    """The index of the answer to give; answer 0 is the model's own (ours; a product of experts over views).

    s_k = 1/V · Σ_v log p(answer_k | view_v);   argmax_k s_k + margin · [k = 0]

    Args:
        logps_KV: log-probabilities of one question's K >= 1 answers under V >= 1 views of its picture.
        margin: nats by which another answer must beat the own one, >= 0; infinity keeps the own.
    Returns:
        0..K-1; the first of equal ones, so the own answer wins a tie.
    Raises:
        ValueError: no answer, no view, or a negative margin.
    """
    if logps_KV.dim() != 2 or 0 in logps_KV.shape or not margin >= 0:
        raise ValueError(f"log-probabilities {tuple(logps_KV.shape)}, margin {margin}: give (K, V) and a margin >= 0")
    scores = logps_KV.double().mean(1)
    scores[0] += margin
    return int((scores == scores.max()).nonzero()[0])


def best_margin(logps: list[torch.Tensor], qualities: list[torch.Tensor], margins: tuple[float, ...]) -> float:
    """The margin under which the preferred answers are best on average; the largest of equally good ones.

    Args:
        logps: per question (K, V). qualities: per question (K,), higher is better. margins: those to try.
    """

    def quality(margin: float) -> float:
        return sum(float(q[preferred_answer(own, margin)]) for own, q in zip(logps, qualities, strict=True))

    return max(margins, key=lambda margin: (quality(margin), margin))
