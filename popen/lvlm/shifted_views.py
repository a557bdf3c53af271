"""Views of a picture moved by a fraction of a picture token: the same things, cut into other patches."""

import numpy as np
import torch
from PIL import Image

from popen.lvlm.inference import Draft, decode_drafts
from popen.preference.sampling import circle_offsets, shifted

WORDS, MASKS = (
    1 / 2,
    1 / 8,
)  # of a picture token: far enough to see anew, near enough to keep every edge in the picture


def view_offsets(processor, image: Image.Image, count: int, share: float) -> list[tuple[int, int]]:
    """`count` offsets (right, down) in pixels of the picture, on a circle of `share` of a token's width."""
    token = max(image.size) / processor.picture_tokens**0.5
    return [(round(right), round(down)) for right, down in circle_offsets(count, share * token)]


def shifted_views(processor, image: Image.Image, count: int, share: float) -> list[Image.Image]:
    """The picture moved to `count` sides, of the same size."""
    pixels = np.asarray(image.convert("RGB"))
    return [Image.fromarray(shifted(pixels, *offset)) for offset in view_offsets(processor, image, count, share)]


@torch.no_grad()
def view_mean_logits(
    model, processor, images: list[Image.Image], drafts: list[Draft], count: int, batch_size: int = 64
) -> list[torch.Tensor]:
    """Per draft, mask logits at the picture's own size, (T, height, width): the mean over it and `count` views of it.

    The drafts keep their embeddings: the vision side looks at every view, the language model does not.
    """
    total = [draft.canvas.restore(own) for draft, (own, _) in zip(drafts, decode_drafts(model, drafts), strict=True)]
    unique = list({id(image): image for image in images}.values())
    offsets = {id(image): view_offsets(processor, image, count, MASKS) for image in unique}
    views = {id(image): shifted_views(processor, image, count, MASKS) for image in unique}
    for k in range(count):
        features = {}
        for start in range(0, len(unique), batch_size):
            part = unique[start : start + batch_size]
            squares = [processor.place(views[id(image)][k])[0] for image in part]
            maps = model.encode_pictures(processor.pixel_values(squares).to(model.device, model.dtype)).features
            features |= {id(image): tuple(level[row] for level in maps) for row, image in enumerate(part)}
        moved = [
            Draft(draft.decoded, draft.embeddings, features[id(image)], draft.canvas)
            for image, draft in zip(images, drafts, strict=True)
        ]
        for index, (own, _) in enumerate(decode_drafts(model, moved)):
            right, down = offsets[id(images[index])][k]
            total[index] = total[index] + _moved_back(drafts[index].canvas.restore(own), right, down)
    return [logits / (1 + count) for logits in total]


def _moved_back(logits_THW: torch.Tensor, right: int, down: int) -> torch.Tensor:
    """Undoes a shift; what left the picture repeats the edge."""
    height, width = logits_THW.shape[-2:]
    rows = (torch.arange(height) + down).clamp(0, height - 1).to(logits_THW.device)
    columns = (torch.arange(width) + right).clamp(0, width - 1).to(logits_THW.device)
    return logits_THW[:, rows][:, :, columns]
