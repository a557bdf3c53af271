"""The square canvas a picture is scaled onto, and the way back to the picture's own pixels."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


@dataclass(frozen=True)
class Canvas:
    """A picture of (height, width) pixels scaled to (scaled_height, scaled_width) in the corner of a square."""

    height: int
    width: int
    scaled_height: int
    scaled_width: int
    side: int

    @classmethod
    def fit(cls, height: int, width: int, side: int) -> "Canvas":
        """The largest scale at which the picture fits a square of `side` pixels."""
        scale = side / max(height, width)
        return cls(height, width, max(round(height * scale), 1), max(round(width * scale), 1), side)

    def place(self, picture: Image.Image) -> Image.Image:
        """The RGB picture on a mid-grey square, padded right and below."""
        scaled = picture
        if picture.size != (self.scaled_width, self.scaled_height):
            scaled = picture.resize((self.scaled_width, self.scaled_height), Image.Resampling.BICUBIC, reducing_gap=3)
        if scaled.size == (self.side, self.side):
            return scaled
        square = Image.new("RGB", (self.side, self.side), (124, 116, 104))
        square.paste(scaled, (0, 0))
        return square

    def place_masks(self, masks_THW: np.ndarray) -> torch.Tensor:
        """Bool masks (T, height, width) to the fraction of each canvas pixel they cover, (T, side, side) in 0..1."""
        placed = torch.zeros(len(masks_THW), self.side, self.side)
        if len(masks_THW):
            masks = torch.from_numpy(np.ascontiguousarray(masks_THW)).float()[None]
            scaled = F.interpolate(masks, (self.scaled_height, self.scaled_width), mode="bilinear", antialias=True)[0]
            placed[:, : self.scaled_height, : self.scaled_width] = scaled.clamp(0, 1)
        return placed

    def valid(self, ignore_HW: np.ndarray) -> torch.Tensor:
        """Canvas pixels that count, (side, side) bool: inside the picture and not ignored."""
        inside = torch.zeros(self.side, self.side, dtype=torch.bool)
        ignored = self.place_masks(ignore_HW[None])[0] > 0.5
        inside[: self.scaled_height, : self.scaled_width] = True
        return inside & ~ignored

    def restore(self, logits_Thw: torch.Tensor) -> torch.Tensor:
        """Mask logits on the canvas at any resolution to the picture's own pixels, (T, height, width)."""
        if len(logits_Thw) == 0:
            return logits_Thw.new_zeros(0, self.height, self.width)
        canvas = F.interpolate(logits_Thw[None].float(), (self.side, self.side), mode="bilinear")[0]
        crop = canvas[:, : self.scaled_height, : self.scaled_width]
        if crop.shape[1:] == (self.height, self.width):
            return crop
        return F.interpolate(crop[None], (self.height, self.width), mode="bilinear")[0]


def counted_cells(valid_BSS: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Cells of the mask decoder's grid that count, bool (B, *size): more than half of their canvas pixels do."""
    return F.adaptive_avg_pool2d(valid_BSS[:, None].float(), size)[:, 0] > 0.5


class PixelLMCanvas(Canvas):
    """As PixelLM places pictures: SAM's rounding, bilinear resizing, and padding that is marked as transparent."""

    @classmethod
    def fit(cls, height: int, width: int, side: int) -> "PixelLMCanvas":
        """The largest scale at which the picture fits a square of `side` pixels; halves are rounded up."""
        scale = side / max(height, width)
        return cls(height, width, max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1), side)

    def place(self, picture: Image.Image) -> Image.Image:
        """The picture on a transparent square, RGBA, padded right and below."""
        scaled = picture.resize((self.scaled_width, self.scaled_height), Image.Resampling.BILINEAR)
        square = Image.new("RGBA", (self.side, self.side))
        square.paste(scaled.convert("RGBA"), (0, 0))
        return square
