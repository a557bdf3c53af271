"""Flip test-time augmentation: the control every ensemble has to beat."""

import re

import torch
from PIL import ImageOps

from popen.lvlm.inference import Draft, decode_drafts, forced_drafts

MIRROR = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
SIDES = re.compile(r"\b(" + "|".join(MIRROR) + r")\b", re.IGNORECASE)


def mirrored_words(text: str) -> str:
    """Left and right exchanged, as a mirrored picture asks for."""

    def swap(match: re.Match) -> str:
        word = MIRROR[match.group().lower()]
        return word.capitalize() if match.group()[0].isupper() else word

    return SIDES.sub(swap, text)


@torch.no_grad()
def flip_logits(model, processor, images, questions: list[str], drafts: list[Draft], batch_size: int = 32) -> list:
    """Per draft, mask logits at the picture's own size, averaged over the picture and its mirror image.

    The draft's own answer is teacher-forced on the mirrored picture, so target j stays target j.
    """
    mirrored = {id(image): ImageOps.mirror(image) for image in images}
    answers = [mirrored_words(draft.decoded.text) for draft in drafts]
    twins = forced_drafts(
        model,
        processor,
        [mirrored[id(image)] for image in images],
        [mirrored_words(question) for question in questions],
        answers,
        batch_size,
    )
    plain, flipped = decode_drafts(model, drafts), decode_drafts(model, twins)
    return [
        (draft.canvas.restore(a) + draft.canvas.restore(b).flip(-1)) / 2 if len(a) else a
        for draft, (a, _), (b, _) in zip(drafts, plain, flipped, strict=True)
    ]
