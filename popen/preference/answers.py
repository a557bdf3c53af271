"""Which of several answers to prefer: one that stays likely when the picture is looked at again, and leaves nothing.

Knows log-probabilities and qualities; not where they come from.
"""

import torch


def answer_scores(logps_KV: torch.Tensor, left_K: torch.Tensor) -> torch.Tensor:
    """Scores of one question's K answers (ours; a product of experts over views, times a second question).

    s_k = 1/V · Σ_v log p(answer_k | view_v) + log p(there is nothing | picture without the things of answer_k)

    Args:
        logps_KV: log-probabilities under V >= 1 views of the picture. left_K: those of the second term.
    Returns:
        (K,) float64.
    Raises:
        ValueError: no answer, no view, or shapes that differ.
    """
    if logps_KV.dim() != 2 or 0 in logps_KV.shape or left_K.shape != logps_KV.shape[:1]:
        raise ValueError(
            f"log-probabilities {tuple(logps_KV.shape)} and {tuple(left_K.shape)}: give (K, V) and (K,), K, V >= 1"
        )
    return logps_KV.double().mean(1) + left_K.double()


def preferred_answer(scores_K: torch.Tensor, margin: float) -> int:
    """The index of the answer to give; answer 0 is the model's own: argmax_k s_k + margin · [k = 0].

    Args:
        scores_K: K >= 1 scores. margin: by how much another answer must beat the own one, >= 0; infinity keeps it.
    Returns:
        0..K-1; the first of equal ones, so the own answer wins a tie.
    Raises:
        ValueError: no answer, or a negative margin.
    """
    if scores_K.dim() != 1 or len(scores_K) == 0 or not margin >= 0:
        raise ValueError(f"scores {tuple(scores_K.shape)}, margin {margin}: give (K,) with K >= 1, and a margin >= 0")
    scores = scores_K.double().clone()
    scores[0] += margin
    return int((scores == scores.max()).nonzero()[0])


def best_margin(scores: list[torch.Tensor], qualities: list[torch.Tensor], margins: tuple[float, ...]) -> float:
    """The margin under which the preferred answers are best on average; the largest of equally good ones.

    Args:
        scores: per question (K,). qualities: per question (K,), higher is better. margins: those to try.
    """

    def quality(margin: float) -> float:
        return sum(float(q[preferred_answer(own, margin)]) for own, q in zip(scores, qualities, strict=True))

    return max(margins, key=lambda margin: (quality(margin), margin))
