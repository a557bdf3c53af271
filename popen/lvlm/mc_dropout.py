"""Dropout at inference for a language model that was built without any: hypotheses from the model's own doubt."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

RESIDUAL = ("o_proj", "down_proj")  # what attention and MLP add to the stream, in every Llama-shaped model


@contextmanager
def residual_dropout(model: nn.Module, rate: float, seed: int) -> Iterator[None]:
    """Inside, each attention and MLP output of the language model loses a share of its channels (Gal & Ghahramani
    2016, MC dropout; that it acts on the residual branches is ours).

    Same seed and same calls, same dropouts; vision tower and mask decoder stay as they are.

    Args:
        rate: p in (0, 1); what is left is scaled by 1 / (1 − p).
    Raises:
        ValueError: p out of range, or no such layer in the model.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate = {rate}: dropout needs a share in (0, 1)")
    layers = [
        module
        for name, module in model.named_modules()
        if "language_model" in name and name.rpartition(".")[2] in RESIDUAL
    ]
    if not layers:
        raise ValueError(f"no layer of the language model is named {' or '.join(RESIDUAL)}; dropout has no place")
    generator = torch.Generator().manual_seed(seed)

    def drop(_module, _inputs, output: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(output.shape, generator=generator) >= rate
        return output * kept.to(output) / (1 - rate)

    handles = [layer.register_forward_hook(drop) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
