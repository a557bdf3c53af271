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
def nothing_left(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    answers: list[list[str]],
    max_new_tokens: int = 96,
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """Per question, for each of its answers log p(nothing is left | picture without the answer's things), (K,) (ours).

    An answer's masks are erased from the picture and the question is asked again. Where the model then denies, in
    words of probability p, this is log p; where it names something with probability p, log(1 − p). Who asks for every
    red thing and got two of three is told of the third; where the answer is wrong, the right one is still there.
    """
    owner = [i for i, own in enumerate(answers) for _ in own]
    flat = [answer for own in answers for answer in own]
    asked = [questions[i] for i in owner]
    drafts = forced_drafts(model, processor, [images[i] for i in owner], asked, flat, batch_size)
    views = []
    for index, logits in zip(owner, restored_masks(model, drafts), strict=True):
        pixels = np.asarray(images[index].convert("RGB"))
        mask = (logits > model.config.mask_threshold).cpu().numpy().reshape(-1, *pixels.shape[:2]).any(0)
        views.append(Image.fromarray(erased(pixels, mask, seed=0)))
    again = generate_drafts(model, processor, views, asked, max_new_tokens, batch_size)
    spoken = [draft.decoded.text for draft in again]
    found = torch.zeros(len(flat))
    for batch in read_answers(model, processor, views, asked, spoken, batch_size):
        for index, logp in zip(batch.order, answer_logps(model, batch).tolist(), strict=True):
            denied = len(again[index].decoded.phrases) == 0
            found[index] = math.log(max(LEAST, math.exp(logp) if denied else 1 - math.exp(logp)))
    return list(found.split([len(own) for own in answers]))
