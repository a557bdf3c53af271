"""What is left to name when an answer's things are gone, from one picture at a time."""

import math

import numpy as np
import pytest
from PIL import Image

from popen.lvlm.answer_likelihood import view_logps
from popen.lvlm.erased_views import LEAST, nothing_left
from popen.lvlm.inference import forced_drafts, generate_drafts, restored_masks
from popen.preference.erasing import erased


def test_by_hand(taught, samples):
    """Each number again: the masks, the picture without them, what the model says of it and how surely."""
    model, processor = taught
    asked = [(s.image, q.question, q.answer) for s in samples[:2] for q in s.questions]
    images, questions, answers = ([row[i] for row in asked] for i in range(3))
    others = [answers[-1]] * len(asked)  # a denial: nothing is erased
    pairs = [list(dict.fromkeys(pair)) for pair in zip(answers, others, strict=True)]
    found = nothing_left(model, processor, images, questions, pairs)
    seen = set()
    for image, question, own, values in zip(images, questions, pairs, found, strict=True):
        assert len(values) == len(own)
        for answer, value in zip(own, values.tolist(), strict=True):
            (draft,) = forced_drafts(model, processor, [image], [question], [answer])
            mask = (restored_masks(model, [draft])[0] > model.config.mask_threshold).numpy().reshape(-1, 96, 96).any(0)
            view = Image.fromarray(erased(np.asarray(image), mask, 0))
            (again,) = generate_drafts(model, processor, [view], [question])
            (logp,) = view_logps(model, processor, [view], [question], [[again.decoded.text]], 0)
            p = math.exp(float(logp))
            denied = not again.decoded.phrases
            seen.add(denied)
            assert value == pytest.approx(math.log(max(LEAST, p if denied else 1 - p)), abs=1e-2)
    assert seen == {True, False}


def test_no_answers(taught):
    assert nothing_left(*taught, [], [], []) == []
