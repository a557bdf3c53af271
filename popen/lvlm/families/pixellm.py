"""PixelLM's own LLaVA: padding is hidden from the tower and from the language model, and a picture is fewer tokens."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from popen.lvlm.canvas import Canvas, PixelLMCanvas
from popen.lvlm.families.family import Family, SeenPictures, grid


class PixelLM(Family):
    """A 32 × 32 grid of patches is 16 × 16 picture tokens; patches whose first pixel is padding are not attended.

    Padding is exactly 0 in normalised pixels, which no 8-bit colour is under the mean that PixelLM subtracts, so the
    pixels themselves say where it is.
    """

    canvas: ClassVar[type[Canvas]] = PixelLMCanvas

    def misfit(self, backbone_config, side: int) -> str | None:
        patches = side / backbone_config.vision_config.patch_size
        if patches % 2:
            return f"image_size {side} is no even number of patches; PixelLM halves them (448 is 32 of 14 pixels)"
        return super().misfit(backbone_config, side)

    def pixel_values(self, image_processor, squares: list) -> torch.Tensor:
        """B squares, transparent where they are padded, to (B, 3, side, side) with 0 there."""
        shown = torch.stack([_opaque(square) for square in squares])
        return super().pixel_values(image_processor, [square.convert("RGB") for square in squares]) * shown

    def see(self, backbone, pixel_values: torch.Tensor, side: int, layers: tuple[int, ...]) -> SeenPictures:
        tower, selected = backbone.model.vision_tower, backbone.config.vision_feature_layer
        shown = shown_patches(pixel_values, tower.config.patch_size)
        states = tower(
            pixel_values,
            attention_mask=tower_mask(shown, pixel_values.dtype),
            output_hidden_states=True,
            return_dict=True,
        ).hidden_states
        tokens = halved(grid(states[selected])).flatten(2).transpose(1, 2)
        language = backbone.model.multi_modal_projector(tokens)
        maps = tuple(grid(states[layer]) for layer in layers)
        return SeenPictures(list(language), maps, shown=list(shown[:, ::2, ::2].flatten(1)))


def shown_patches(pixel_values: torch.Tensor, patch: int) -> torch.Tensor:
    """Which patches of (B, 3, side, side) are not padding, by their first pixel, (B, h, w) bool."""
    return (pixel_values[:, :, ::patch, ::patch] != 0).any(1)


def tower_mask(shown_Bhw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Shown patches to what is added to the tower's attention logits, (B, 1, 1 + P, 1 + P); CLS is always shown."""
    keys = F.pad(shown_Bhw.flatten(1), (1, 0), value=True)[:, None, None]
    blocked = torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill(~keys, torch.finfo(dtype).min)
    return blocked.expand(-1, -1, keys.shape[-1], -1)


def halved(maps_BChw: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to (B, C, h/2, w/2) by bilinear sampling."""
    height, width = maps_BChw.shape[-2:]
    return F.interpolate(maps_BChw.float(), (height // 2, width // 2), mode="bilinear").to(maps_BChw.dtype)


def _opaque(square) -> torch.Tensor:
    """Where a square is not transparent, (1, side, side) float; everywhere in one without transparency."""
    alpha = square.convert("RGBA").getchannel("A")
    opaque = torch.frombuffer(bytearray(alpha.tobytes()), dtype=torch.uint8) > 0
    return opaque.reshape(1, *alpha.size[::-1]).float()
