"""Pictures as the model sees them, each encoded once, however many passes then read them."""

from dataclasses import dataclass

import torch
from PIL import Image

from popen.lvlm.canvas import Canvas
from popen.lvlm.encoded_pictures import EncodedPictures
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.pass_size import rows_per_pass
from popen.lvlm.processing_popen import PopenProcessor


@dataclass(frozen=True)
class Shown:
    """Pictures, their canvases, and per row which of them it is about."""

    pictures: EncodedPictures
    canvases: list[Canvas]
    rows: list[int]


class Gallery:
    """Keeps what the vision tower and the pixel encoder made of each picture object, as long as it lives itself."""

    def __init__(self, model: PopenForReasoningSegmentation, processor: PopenProcessor):
        self.model, self.processor = model, processor
        self._seen: dict[int, tuple[Image.Image, EncodedPictures, Canvas]] = {}  # the object keeps its id from others

    @torch.no_grad()
    def show(self, images: list[Image.Image], numbers: list[int]) -> Shown:
        """Each distinct picture once; new ones are encoded together, on a processor few at a time.

        Args:
            images: one per row. numbers: what to call each of them in errors.
        Raises:
            DataError: a picture that cannot be used.
        """
        named = {id(image): (image, f"image {number}") for image, number in zip(images, numbers, strict=True)}
        new = [key for key in named if key not in self._seen]
        at_once = rows_per_pass(self.model, self.processor.picture_tokens, max(len(new), 1))
        for part in (new[start : start + at_once] for start in range(0, len(new), at_once)):
            placed = [self.processor.place(*named[key]) for key in part]
            pixels = self.processor.pixel_values([square for square, _ in placed])
            encoded = self.model.encode_pictures(pixels.to(self.model.device, self.model.dtype))
            for place, (key, (_, canvas)) in enumerate(zip(part, placed, strict=True)):
                self._seen[key] = (named[key][0], encoded.of_rows([place]), canvas)
        place = {key: row for row, key in enumerate(named)}
        kept = [self._seen[key] for key in named]
        return Shown(
            EncodedPictures.joined([pictures for _, pictures, _ in kept]),
            [canvas for _, _, canvas in kept],
            [place[id(image)] for image in images],
        )
