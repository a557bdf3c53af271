"""Likelihoods of many answers under many views are those of one answer about one view."""

import numpy as np
import pytest
import torch
from PIL import Image

from popen.lvlm.answer_hypotheses import answer_hypotheses
from popen.lvlm.answer_likelihood import view_logps
from popen.lvlm.inference import generate_drafts
from popen.lvlm.packing import question_branches, stack_rows
from popen.preference.sampling import shifted


def test_log_probabilities_of_views_by_hand(taught, samples):
    """Each number again, from one answer about one view at a time."""
    model, processor = taught
    images = [s.image for s in samples[2:] for _ in s.questions]
    questions = [q.question for s in samples[2:] for q in s.questions]
    drafts = generate_drafts(model, processor, images, questions)
    answers = answer_hypotheses(model, processor, images, questions, drafts, 2, 1e-3)
    logps = view_logps(model, processor, images, questions, answers, views=2)
    for image, question, own, found in zip(images, questions, answers, logps, strict=True):
        pixels = np.asarray(image.convert("RGB"))
        views = [image, *(Image.fromarray(shifted(pixels, right, 0)) for right in (6, -6))]  # a token is 12 wide
        for k, answer in enumerate(own):
            batch = stack_rows([question_branches(processor, [(question, answer)], "x")], 0)
            inputs = {name: v for name, v in batch.items() if name not in ("token_sequence", "sequence_row")}
            for v, view in enumerate(views):
                with torch.no_grad():
                    output = model(**inputs, pixel_values=processor.pixel_values([processor.place(view)[0]]))
                assert float(found[k, v]) == pytest.approx(float(output.logps.sum()), abs=1e-3)
