"""How much a judge's word counts, by what its winners gain in area: found on labelled pictures, used on others.

A judge that prefers large masks is right by chance only where its winner is the larger one; its other pairs may be
good. Refusing it throws those away, trusting it teaches the model to grow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from popen.objectives.shapes import check_same_shape

EDGES = (-0.3, -0.1, 0.1, 0.3)  # log area: much smaller, smaller, alike, larger, much larger


@dataclass(frozen=True)
class GrowthWeights:
    """Weights in 0..1 of B bins of growth and their B − 1 inner edges, ascending; a growth on an edge is above it.

    `pairs` and `correct` are what the weights come from: per bin the number of labelled pairs, and the share of the
    pixels in R on which their winners are right, ½ where there is no pair.
    """

    edges: tuple[float, ...]
    weights: tuple[float, ...]
    pairs: tuple[int, ...]
    correct: tuple[float, ...]

    def of(self, growth: torch.Tensor) -> torch.Tensor:
        """Weights of growths of any shape, float64."""
        return torch.tensor(self.weights, dtype=torch.float64)[_bins(growth, self.edges)]

    def __str__(self) -> str:
        low, high = (-torch.inf, *self.edges), (*self.edges, torch.inf)
        rows = zip(low, high, self.weights, self.correct, self.pairs, strict=True)
        return "weight by growth in log area: " + ", ".join(
            f"{a:+.1f}..{b:+.1f} {weight:.2f} (right {share:.0%} of {count})" for a, b, weight, share, count in rows
        )


def growth_weights(
    growth: torch.Tensor, correct: torch.Tensor, edges: Sequence[float] = EDGES, prior: float = 2.0
) -> GrowthWeights:
    """Weights from N labelled pairs that a judge ordered (ours).

    w_b = max(0, 2 p_b − 1),   p_b = (Σ_{n∈b} c_n + m/2) / (|b| + m)

    p_b is shrunken towards the coin's ½ as if m pairs had been seen before. 2p − 1 is what is left of a preference
    when the pixels that are wrong have undone as many right ones.

    Args:
        growth: (N,), `log_growth`'s. correct: c in 0..1, (N,), `right_inside`'s. edges: inner edges, ascending.
        prior: m >= 0.
    Returns:
        The weights; 0 for a bin without a pair.
    Raises:
        ValueError: shapes differ, no pair, edges not ascending, a negative prior, or shares outside 0..1.
    """
    check_same_shape(growth=growth, correct=correct)
    if growth.dim() != 1 or not len(growth):
        raise ValueError(f"growth {tuple(growth.shape)}: give (N,) with at least one labelled pair")
    if prior < 0 or list(edges) != sorted(set(edges)):
        raise ValueError(f"edges {tuple(edges)}, prior {prior}: edges must ascend, the prior cannot be negative")
    if not ((correct >= 0) & (correct <= 1)).all():
        raise ValueError("correct: shares lie in 0..1")
    bins = _bins(growth, edges)
    count = torch.bincount(bins, minlength=len(edges) + 1)
    right = torch.bincount(bins, weights=correct.double(), minlength=len(edges) + 1)
    seen = count + prior
    shrunken = torch.where(seen > 0, (right + prior / 2) / seen.clamp(min=1e-12), 0.5)
    share = torch.where(count > 0, right / count.clamp(min=1), 0.5)
    weights = (2 * shrunken - 1).clamp(min=0)
    return GrowthWeights(tuple(edges), tuple(weights.tolist()), tuple(count.tolist()), tuple(share.tolist()))


def _bins(growth: torch.Tensor, edges: Sequence[float]) -> torch.Tensor:
    return torch.bucketize(growth.double(), torch.tensor(tuple(edges), dtype=torch.float64), right=True)
