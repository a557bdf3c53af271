"""The second question to an answer: without the things it names, is anything left that the question asks for?"""

import math

import numpy as np
import torch
from PIL import Image

from popen.lvlm.answer_likelihood import answer_logps
from popen.lvlm.inference import forced_drafts, generate_drafts, read_answers, restored_masks
from popen.preference.erasing import erased

LEAST = 1e-4  # no probability is believed to be lower than this


@torch.no_grad()
def denials(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    max_new_tokens: int = 96,
    batch_size: int = 32,
) -> list[str | None]:
    """Per question how the model says that there is nothing: its answer about a picture from which all is erased.

    None where it names something even there, as it may where every picture it has seen had an answer.
    """
    blank: dict[int, Image.Image] = {}
    for image in images:
        if id(image) not in blank:
            pixels = np.asarray(image.convert("RGB"))
            blank[id(image)] = Image.fromarray(erased(pixels, np.ones(pixels.shape[:2], bool), seed=0))
    drafts = generate_drafts(
        model, processor, [blank[id(image)] for image in images], questions, max_new_tokens, batch_size
    )
    return [draft.decoded.text if not draft.decoded.phrases else None for draft in drafts]


@torch.no_grad()
def nothing_left(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    answers: list[list[str]],
    spoken: list[str | None],
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """Per question, for each of its answers log p(denial | picture without the answer's things), (K,) (ours).

    An answer's masks are erased from the picture and the question is asked again. Who asks for every red thing and got
    two of three is told of the third; where the answer is wrong, the right one is still there. 0 where the model knows
    no denial.

    Args:
        spoken: of `denials`, one per question.
    """
    flat = [(i, k) for i, own in enumerate(answers) if spoken[i] is not None for k in range(len(own))]
    asked = [questions[i] for i, _ in flat]
    given = [answers[i][k] for i, k in flat]
    drafts = forced_drafts(model, processor, [images[i] for i, _ in flat], asked, given, batch_size)
    views = []
    for (index, _), logits in zip(flat, restored_masks(model, drafts), strict=True):
        pixels = np.asarray(images[index].convert("RGB"))
        mask = (logits > model.config.mask_threshold).cpu().numpy().reshape(-1, *pixels.shape[:2]).any(0)
        views.append(Image.fromarray(erased(pixels, mask, seed=0)))
    found = [torch.zeros(len(own)) for own in answers]
    for batch in read_answers(model, processor, views, asked, [spoken[i] for i, _ in flat], batch_size):
        for number, logp in zip(batch.order, answer_logps(model, batch).tolist(), strict=True):
            index, answer = flat[number]
            found[index][answer] = max(logp, math.log(LEAST))
    return found
