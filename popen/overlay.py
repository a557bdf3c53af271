"""Draws masks over a picture: a tint inside, a line around, one colour per target."""

import numpy as np
from PIL import Image

PALETTE = ((230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180), (0, 160, 160), (240, 50, 230))


def draw_masks(picture: Image.Image, masks: list[np.ndarray], strength: float = 0.45, scale: int = 1) -> Image.Image:
    """The RGB picture, enlarged `scale` times, with each bool mask (H, W) tinted and outlined."""
    size = (picture.width * scale, picture.height * scale)
    canvas = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    thickness = max(1, round(min(size) / 200))
    for number, mask in enumerate(masks):
        colour = np.array(PALETTE[number % len(PALETTE)], np.float32)
        inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        canvas[inside] += strength * (colour - canvas[inside])
        canvas[inside & ~_eroded(inside, thickness)] = colour
    return Image.fromarray(canvas.round().astype(np.uint8))


def _eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    kept = mask.copy()
    for _ in range(pixels):
        inner = np.pad(kept, 1)
        kept = kept & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return kept
