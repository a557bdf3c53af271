"""A U-Net with attention at its narrowest place and dense skips between decoder stages, in 2-D and 3-D.

After TransAttUNet (Chen et al. 2021, arXiv 2107.05274): a self-aware attention bridge, which adds a Transformer's
self-attention and a global spatial attention to the encoder's features, and multi-scale skips between decoder blocks.
Reconstruction (ours): sines instead of learned positions, so that any size fits; several heads over normalised tokens;
learned weights of the two attentions that begin at 0.1; every decoder stage reads all coarser ones through 1×1
projections, the nearest at full width and the others at a quarter of it; the third dimension.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


class ConvBlock(nn.Sequential):
    """Twice convolution, normalisation, activation; then dropout of whole channels."""

    def __init__(self, dims: int, inward: int, outward: int, norm: str, dropout: float):
        layers: list[nn.Module] = []
        for channels in (inward, outward):
            layers += [CONV[dims](channels, outward, 3, padding=1, bias=False)]
            layers += [NORM[norm][dims](outward, affine=True), nn.ReLU(inplace=True)]
        super().__init__(*layers, *([DROPOUT[dims](dropout)] if dropout else []))


class SelfAttention(nn.Module):
    """Multi-head self-attention between all voxels, which know where they are."""

    def __init__(self, channels: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        tokens_BND = features.flatten(2).transpose(1, 2)
        place = positions(features.shape[2:], features.shape[1], features.device).to(features.dtype)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm(tokens_BND + place)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.dropout(self.out(attended)).transpose(1, 2).unflatten(2, features.shape[2:])


class GlobalSpatialAttention(nn.Module):
    """Each voxel gathers what resembles it anywhere: softmax of dot products of two narrow projections."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        narrow = max(channels // 8, 1)
        self.query, self.key = CONV[dims](channels, narrow, 1), CONV[dims](channels, narrow, 1)
        self.value = CONV[dims](channels, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(features).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value))
        gathered = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return gathered.transpose(1, 2).unflatten(2, features.shape[2:])


class SelfAwareAttention(nn.Module):
    """The bridge: features plus both attentions, each with a weight that is learned."""

    def __init__(self, dims: int, channels: int, heads: int, dropout: float):
        super().__init__()
        self.self_attention = SelfAttention(channels, heads, dropout)
        self.spatial_attention = GlobalSpatialAttention(dims, channels)
        self.weights = nn.Parameter(torch.full((2,), 0.1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        attended = self.weights[0] * self.self_attention(features)
        return features + attended + self.weights[1] * self.spatial_attention(features)


class TransAttUNet(nn.Module):
    """Maps pictures (B, C, *spatial) to logits (B, K, *spatial); each side of at least 2^(levels − 1) voxels.

    Args:
        channels: of each level, the full resolution first; two or more levels.
        heads: of the bridge's self-attention; divides the last number of channels.
        norm: "batch", or "instance" for batches of one or two volumes.
        dropout: share in [0, 1) of channels that each block loses in training, and of the bridge's attention.
    Raises:
        ValueError: sizes that do not go together.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        heads: int = 4,
        norm: str = "batch",
        dropout: float = 0.0,
    ):
        super().__init__()
        if len(channels) < 2 or heads < 1 or channels[-1] % heads or channels[-1] < 2 * dims:
            raise ValueError(
                f"channels {tuple(channels)}: two or more, the last divisible by {heads} heads and at least {2 * dims}"
            )
        if norm not in NORM:
            raise ValueError(f"norm {norm!r}: batch or instance")
        self.pool = POOL[dims](2)
        self.mode = LINEAR[dims]
        inward = [in_channels, *channels[:-1]]
        self.encoder = nn.ModuleList(
            ConvBlock(dims, i, o, norm, dropout) for i, o in zip(inward, channels, strict=True)
        )
        self.bridge = SelfAwareAttention(dims, channels[-1], heads, dropout)
        self.projections, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(channels) - 1)):
            coarser, width = channels[:level:-1], channels[level]
            widths = [max(width // 4, 1)] * (len(coarser) - 1) + [width]  # at full width, dense skips double the cost
            read = (CONV[dims](c, w, 1) for c, w in zip(coarser, widths, strict=True))
            self.projections.append(nn.ModuleList(read))
            self.decoder.append(ConvBlock(dims, width + sum(widths), width, norm, dropout))
        self.head = CONV[dims](channels[0], out_channels, 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        skips, features = [], pictures
        for block in self.encoder:
            features = block(self.pool(features) if skips else features)
            skips.append(features)
        decoded = [self.bridge(skips.pop())]  # the coarsest first
        for projections, block in zip(self.projections, self.decoder, strict=True):
            skip = skips.pop()
            size = skip.shape[2:]
            # projected first, then enlarged: both are linear, and this way round is cheaper
            narrowed = (project(coarse) for project, coarse in zip(projections, decoded, strict=True))
            read = [F.interpolate(coarse, size, mode=self.mode, align_corners=False) for coarse in narrowed]
            decoded.append(block(torch.cat([skip, *read], 1)))
        return self.head(decoded[-1])


def positions(size: Sequence[int], channels: int, device: torch.device | None = None) -> torch.Tensor:
    """Sines and cosines of each axis in its share of the channels: (N, channels) for N voxels in C order, −1..1.

    The formula of Vaswani et al. 2017 per axis; channels that the axes cannot share stay 0.
    """
    share = channels // (2 * len(size))
    frequencies = torch.exp(torch.arange(share, device=device) * (-math.log(10000.0) / share))
    parts = []
    for axis in torch.meshgrid(*(torch.arange(side, device=device) for side in size), indexing="ij"):
        angles = axis.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    return F.pad(torch.cat(parts, 1), (0, channels - 2 * share * len(size)))
