"""Multi-scale pixel features for the mask decoder, coarse to fine."""

import torch
from torch import nn
from torch.nn import functional as F

from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.frozen_maps import FrozenMaps
from popen.lvlm.pixel_backbones import ONE_RESOLUTION, pixel_backbone


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
    """Features (B, D, h·2^l, w·2^l) for level l = 0 … L−1, from an encoder of its own or the vision tower's depths.

    Where the encoder has one resolution, every level after the first is doubled by its neck; a map of another size
    than its level's is stretched to it.
    """

    def __init__(self, config: PopenConfig):
        super().__init__()
        if config.pixel_config is None:
            self.backbone, self.layers = None, tuple(config.pixel_layers)
            channels = [config.backbone_config.vision_config.hidden_size] * len(self.layers)
        else:
            self.backbone, self.layers = pixel_backbone(config.pixel_config), ()
            channels = list(reversed(self.backbone.channels))
        flat = self.backbone is None or isinstance(self.backbone, ONE_RESOLUTION)
        if len(channels) != config.scales or (flat and config.scales > 2):
            raise ValueError(
                f"scales={config.scales} does not fit the pixel encoder's {len(channels)} feature maps; "
                "set scales to their number, or out_features of pixel_config"
            )
        self.side, self.frozen_maps = config.pixel_size, FrozenMaps()
        self.necks = nn.ModuleList(
            Neck(c, config.decoder_dim, double=flat and level > 0) for level, c in enumerate(channels)
        )
        self.affine = config.pixel_affine

    def forward(self, pictures: torch.Tensor | None, tower_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Pictures (B, 3, S, S), or the vision tower's maps (B, C, h, w) at `layers`, to L maps, coarse first."""
        maps = tower_maps if self.backbone is None else self._maps(pictures)
        levels = [neck(m) for neck, m in zip(self.necks, maps, strict=True)]
        height, width = levels[0].shape[-2:]
        sizes = [(height << level, width << level) for level in range(len(levels))]
        return tuple(
            m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear")
            for m, size in zip(levels, sizes, strict=True)
        )

    def train(self, mode: bool = True) -> "PixelEncoder":
        """As modules do, but an encoder that does not learn drops nothing at random either."""
        super().train(mode)
        if self.backbone is not None and not any(own.requires_grad for own in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def _maps(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The maps of an encoder beside the tower, coarse first."""

        def encode(squares: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(reversed(self.backbone(self._own(squares)).feature_maps))

        if self.training and FrozenMaps.serve(self.backbone, pictures):
            return self.frozen_maps.of(self.backbone, pictures, encode)
        return encode(pictures)

    def _own(self, pictures: torch.Tensor) -> torch.Tensor:
        """The pictures at the encoder's own size and normalisation."""
        if self.affine is not None:
            scale, shift = (pictures.new_tensor(values)[:, None, None] for values in self.affine)
            pictures = pictures * scale + shift
        if self.side is not None and pictures.shape[-1] != self.side:
            pictures = F.interpolate(pictures, (self.side, self.side), mode="bilinear", antialias=True)
        return pictures


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
