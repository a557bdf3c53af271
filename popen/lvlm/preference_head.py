"""The preference head: a Bradley-Terry score for each mask hypothesis of a target."""

import torch
from torch import nn

from popen.preference.ensemble import mask_evidence


class PreferenceHead(nn.Module):
    """Scores hypotheses from their embedding and from the picture under their mask (reconstruction).

    P(a ≻ b) = σ(s_a − s_b), trained on P_s. On the embedding alone hypotheses cannot be told apart, so the head
    also sees picture features pooled inside and around each mask, and how confident and how shared the mask is.
    """

    def __init__(self, dim: int, scales: int, hidden: int = 128):
        super().__init__()
        inputs = 2 * scales * dim + 2 * dim + 5
        self.norm = nn.LayerNorm(inputs)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1)
        )

    def reset_parameters(self) -> None:
        """Starts over with fresh weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()

    def evidence(
        self, embeddings_TKLD: torch.Tensor, logits_TKHW: torch.Tensor, features_TDHW: torch.Tensor
    ) -> torch.Tensor:
        """What the head looks at, (T, K, F): embedding, its offset from the K's mean, and pixel evidence."""
        flat = embeddings_TKLD.flatten(2)
        offset = flat - flat.mean(1, keepdim=True)
        return torch.cat([flat, offset, mask_evidence(logits_TKHW, features_TDHW)], -1)

    def forward(self, evidence_TKF: torch.Tensor) -> torch.Tensor:
        """Scores (T, K); only differences within a target mean anything."""
        own = self.norm.weight.dtype  # what pixels say is counted in float32, whatever the model computes in
        return self.mlp(self.norm(evidence_TKF.to(own)))[..., 0]
