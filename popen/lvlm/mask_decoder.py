"""The light multi-scale mask decoder: one two-way transformer per scale (PixelLM, section 3.3; blocks as in SAM)."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention between two sequences, computed at a reduced inner width."""

    def __init__(self, dim: int, heads: int, downsample: int = 1):
        super().__init__()
        self.heads, inner = heads, dim // downsample
        self.q, self.k, self.v = nn.Linear(dim, inner), nn.Linear(dim, inner), nn.Linear(dim, inner)
        self.out = nn.Linear(inner, dim)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q, q), (self.k, k), (self.v, v))
        )
        # Written out: one side has three tokens, and fused attention kernels are slow at that (2x on CPU).
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves, then to the picture; the picture attends to the tokens."""

    def __init__(self, dim: int, heads: int, mlp_dim: int):
        super().__init__()
        self.tokens_to_tokens = Attention(dim, heads)
        self.tokens_to_image = Attention(dim, heads, downsample=2)
        self.image_to_tokens = Attention(dim, heads, downsample=2)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))

    def forward(self, tokens, image, token_pe, image_pe):
        q = tokens + token_pe
        tokens = self.norms[0](tokens + self.tokens_to_tokens(q, q, tokens))
        tokens = self.norms[1](tokens + self.tokens_to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        image = self.norms[3](image + self.image_to_tokens(image + image_pe, tokens + token_pe, tokens))
        return tokens, image


class ScaleDecoder(nn.Module):
    """Decodes one scale: features (T, D, h, w) and an embedding (T, D) to mask logits (T, 2h, 2w)."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_dim: int):
        super().__init__()
        self.output_tokens = nn.Parameter(torch.randn(2, dim) * 0.02)  # mask token, quality token
        self.layers = nn.ModuleList(TwoWayLayer(dim, heads, mlp_dim) for _ in range(depth))
        self.final_attention = Attention(dim, heads, downsample=2)
        self.final_norm = nn.LayerNorm(dim)
        self.narrow = max(dim // 4, 16)
        # SAM doubles the resolution by a 2×2 transposed convolution, which is a linear layer per pixel
        self.upscale = nn.Linear(dim, 4 * self.narrow)
        self.upscale_norm = nn.LayerNorm(self.narrow)
        self.hypernetwork = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, self.narrow))
        self.position_frequencies = nn.Parameter(torch.randn(2, dim // 2))

    def forward(self, features_TDHW: torch.Tensor, embedding_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        targets, _, height, width = features_TDHW.shape
        image = features_TDHW.flatten(2).transpose(1, 2)
        image_pe = self._positions(height, width).to(image.dtype)
        # The embedding is added to the output tokens too: a path from it to every pixel that need not be learnt first.
        outputs = self.output_tokens.to(image.dtype) + embedding_TD[:, None]
        tokens = torch.cat([outputs, embedding_TD[:, None]], 1)
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attention(tokens + token_pe, image + image_pe, image)
        tokens = self.final_norm(tokens + attended)
        upscaled = F.gelu(self.upscale_norm(self.upscale(image).unflatten(2, (4, self.narrow))))
        logits = upscaled.flatten(1, 2) @ self.hypernetwork(tokens[:, 0])[:, :, None]
        # by hand: F.pixel_shuffle has no backward for a batch without targets
        logits = logits.view(targets, height, width, 2, 2).transpose(2, 3)
        return logits.reshape(targets, 2 * height, 2 * width), tokens[:, 1]

    def _positions(self, height: int, width: int) -> torch.Tensor:
        """Random Fourier features of pixel-centre coordinates, (h·w, D); frequencies are trained."""
        device = self.position_frequencies.device
        ys = (torch.arange(height, device=device) + 0.5) / height * 2 - 1
        xs = (torch.arange(width, device=device) + 0.5) / width * 2 - 1
        grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"), -1).flatten(0, 1)
        # a product and a sum, not a matmul: autocast would round the phase to bfloat16
        phase = 2 * math.pi * (grid[:, :, None] * self.position_frequencies).sum(1)
        return torch.cat([phase.sin(), phase.cos()], -1)


class MaskDecoder(nn.Module):
    """Decodes coarse to fine; each level's features are modulated by the mask before it, and all levels are summed.

    f_l ← f_l · (1 + σ(m_{l−1})),   m = Σ_l w_l · up(m_l), with trained w (PixelLM: constants 1/2).
    The quality head predicts each mask's IoU from the last level's quality token.
    """

    def __init__(self, dim: int, depth: int, heads: int, mlp_dim: int, scales: int):
        super().__init__()
        self.levels = nn.ModuleList(ScaleDecoder(dim, depth, heads, mlp_dim) for _ in range(scales))
        self.scale_weights = nn.Parameter(torch.full((scales,), 1.0 / scales))
        self.quality_head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(
        self, features: tuple[torch.Tensor, ...], picture_T: torch.Tensor, embeddings_TLD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (T, H, W) at twice the finest map's resolution, and predicted IoU (T,) in 0..1.

        Args:
            features: L maps (B, D, h_l, w_l), coarse first.
            picture_T: index into B of each target's picture.
            embeddings_TLD: segmentation embeddings.
        """
        if embeddings_TLD.ndim != 3 or not embeddings_TLD.shape[1] == len(self.levels) == len(features):
            raise ValueError(
                f"embeddings {tuple(embeddings_TLD.shape)} and {len(features)} feature maps; "
                f"the decoder has {len(self.levels)} levels"
            )
        height, width = (2 * side for side in features[-1].shape[-2:])
        total, previous, quality = 0.0, None, None
        for level, decoder in enumerate(self.levels):
            maps = features[level][picture_T]
            if previous is not None:
                attention = F.interpolate(previous[:, None].sigmoid(), maps.shape[-2:], mode="bilinear")
                maps = maps * (1 + attention)
            previous, quality = decoder(maps, embeddings_TLD[:, level])
            scaled = F.interpolate(previous[:, None], (height, width), mode="bilinear")[:, 0]
            total = total + self.scale_weights[level] * scaled
        return total, self.quality_head(quality)[:, 0].sigmoid()
