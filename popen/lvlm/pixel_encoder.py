"""Multi-scale pixel features for the mask decoder, coarse to fine."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone

from popen.lvlm.configuration_popen import PopenConfig


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Neck(nn.Sequential):
    """Brings one feature map to the decoder's width and, where asked, to twice its resolution."""

    def __init__(self, channels: int, dim: int, double: bool):
        upsample = [nn.ConvTranspose2d(dim, dim, 2, 2), LayerNorm2d(dim), nn.GELU()] if double else []
        super().__init__(
            nn.Conv2d(channels, dim, 1, bias=False),
            LayerNorm2d(dim),
            *upsample,
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            LayerNorm2d(dim),
        )


class PixelEncoder(nn.Module):
    """Features (B, D, h·2^l, w·2^l) for level l = 0 … L−1, from an `AutoBackbone` or from the vision tower's depths.

    The vision tower has one resolution, so every level after the first is doubled by its neck; a backbone whose
    finer stage already doubles the coarser one is used as it is.
    """

    def __init__(self, config: PopenConfig):
        super().__init__()
        if config.pixel_config is None:
            self.backbone = None
            self.layers = tuple(config.pixel_layers)
            channels = [config.backbone_config.vision_config.hidden_size] * len(self.layers)
            doublings = list(range(len(self.layers)))
        else:
            self.backbone = AutoBackbone.from_config(config.pixel_config)
            channels = list(reversed(self.backbone.channels))
            doublings = [0] * config.scales
        if len(channels) != config.scales or max(doublings, default=0) > 1:
            raise ValueError(
                f"scales={config.scales} does not fit the pixel encoder's {len(channels)} feature maps; "
                "set scales to their number, or out_features of pixel_config"
            )
        self.necks = nn.ModuleList(
            Neck(c, config.decoder_dim, double=bool(d)) for c, d in zip(channels, doublings, strict=True)
        )

    def forward(self, pixel_values: torch.Tensor, tower_states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Pictures (B, 3, S, S) and the vision tower's hidden states (B, 1+P, C) to L maps, coarse first."""
        if self.backbone is not None:
            maps = tuple(reversed(self.backbone(pixel_values).feature_maps))
        else:
            maps = tuple(_grid(tower_states[layer]) for layer in self.layers)
        return tuple(neck(m) for neck, m in zip(self.necks, maps, strict=True))


class PixelFusion(nn.Module):
    """Adds pixel features, averaged over each picture token's area, to the language model's picture tokens."""

    def __init__(self, dim: int, scales: int, hidden_size: int):
        super().__init__()
        self.project = nn.Linear(dim * scales, hidden_size)

    def forward(self, tokens: list[torch.Tensor], features: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Tokens, one (P, H) per picture with P a square number, and maps (B, D, h_l, w_l) to tokens of that shape."""
        side = int(len(tokens[0]) ** 0.5)
        pooled = [F.adaptive_avg_pool2d(level, side) for level in features]
        added = self.project(torch.cat(pooled, 1).flatten(2).transpose(1, 2))
        return [own + more for own, more in zip(tokens, added, strict=True)]


def _grid(states_BPC: torch.Tensor) -> torch.Tensor:
    """(B, P or 1+P, C) patch states to (B, C, √P, √P); a class token in front is dropped."""
    side = int((states_BPC.shape[1]) ** 0.5)
    patches = states_BPC[:, -side * side :]
    return patches.transpose(1, 2).unflatten(2, (side, side))
