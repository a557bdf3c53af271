"""Sampling answers so that each question has a seed of its own, whatever it is batched with."""

import torch
from transformers import LogitsProcessor


class SeededSampling(LogitsProcessor):
    """Makes greedy decoding draw from softmax(logits / T): the argmax of logits / T plus Gumbel noise is a sample.

    Args:
        seeds: one per row of the batch. temperature: T > 0.
    Raises:
        ValueError: temperature <= 0.
    """

    def __init__(self, seeds: list[int], temperature: float):
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}: sampling needs one above 0")
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores (B, V) plus fresh noise for every row."""
        drawn = torch.stack([torch.rand(scores.shape[-1], generator=g) for g in self.generators])
        gumbel = -torch.log(-torch.log(drawn.clamp(1e-20, 1 - 1e-7)))
        return scores / self.temperature + gumbel.to(scores)
