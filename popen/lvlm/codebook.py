"""The segmentation codebook: N tokens for each of L scales become one embedding per scale."""

import torch
from torch import nn


class Codebook(nn.Module):
    """Projects and fuses the hidden states that predict a target's `[SEG…]` tokens.

    e_{t,l} = Σ_n w_{l,n} · MLP(h_{t,l,n}); PixelLM, section 3.2. PixelLM's released weights are unregistered
    constants 1/6; here w is a trained parameter that starts at 1/N.

    Args:
        hidden_size: H of the language model.
        dim: D of the mask decoder.
        scales: L. tokens_per_scale: N.
    """

    def __init__(self, hidden_size: int, dim: int, scales: int, tokens_per_scale: int):
        super().__init__()
        self.scales, self.tokens_per_scale = scales, tokens_per_scale
        self.project = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, dim))
        self.fusion = nn.Parameter(torch.full((scales, tokens_per_scale), 1.0 / tokens_per_scale))

    def forward(self, hidden_TNH: torch.Tensor) -> torch.Tensor:
        """Hidden states (T, L·N, H), scale by scale, to embeddings (T, L, D).

        Raises:
            ValueError: the second axis is not L·N.
        """
        expected = self.scales * self.tokens_per_scale
        if hidden_TNH.ndim != 3 or hidden_TNH.shape[1] != expected:
            raise ValueError(
                f"hidden states of shape {tuple(hidden_TNH.shape)}; the codebook needs (T, {expected}, H)"
            )
        projected_TLND = self.project(hidden_TNH).unflatten(1, (self.scales, self.tokens_per_scale))
        return torch.einsum("ln,tlnd->tld", self.fusion.to(projected_TLND.dtype), projected_TLND)
