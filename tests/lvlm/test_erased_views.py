"""What is left to name when an answer's things are gone, from one picture at a time."""

import numpy as np
import pytest
from PIL import Image

from popen.lvlm.answer_likelihood import view_logps
from popen.lvlm.erased_views import denials, nothing_left
from popen.lvlm.inference import forced_drafts, generate_drafts, restored_masks
from popen.preference.erasing import erased


@pytest.fixture(scope="module")
def asked(samples):
    """Pictures, questions and true answers of the two scenes that the model was taught."""
    rows = [(s.image, q.question, q.answer) for s in samples[:2] for q in s.questions]
    return tuple([row[i] for row in rows] for i in range(3))


def test_a_denial_is_what_is_said_of_an_empty_picture(taught, asked):
    images, questions, _ = asked
    found = denials(*taught, images, questions)
    for image, question, spoken in zip(images, questions, found, strict=True):
        pixels = np.asarray(image)
        blank = Image.fromarray(erased(pixels, np.ones(pixels.shape[:2], bool), 0))
        (draft,) = generate_drafts(*taught, [blank], [question])
        assert spoken == (None if draft.decoded.phrases else draft.decoded.text)


def test_by_hand(taught, asked):
    """Each number again: the masks, the picture without them, and how likely the denial is there."""
    model, processor = taught
    images, questions, answers = asked
    spoken = [answers[-1] if i % 2 else None for i in range(len(answers))]
    pairs = [list(dict.fromkeys([own, answers[0]])) for own in answers]
    found = nothing_left(model, processor, images, questions, pairs, spoken)
    for image, question, own, denial, values in zip(images, questions, pairs, spoken, found, strict=True):
        assert len(values) == len(own)
        for answer, value in zip(own, values.tolist(), strict=True):
            if denial is None:
                assert value == 0
                continue
            (draft,) = forced_drafts(model, processor, [image], [question], [answer])
            mask = (restored_masks(model, [draft])[0] > model.config.mask_threshold).numpy().reshape(-1, 96, 96).any(0)
            view = Image.fromarray(erased(np.asarray(image), mask, 0))
            (logp,) = view_logps(model, processor, [view], [question], [[denial]], 0)
            assert value == pytest.approx(max(float(logp), np.log(1e-4)), abs=1e-2)
    assert len({round(value, 2) for values in found for value in values.tolist()}) > 3


def test_no_answers(taught):
    assert nothing_left(*taught, [], [], [], []) == [] and denials(*taught, [], []) == []
