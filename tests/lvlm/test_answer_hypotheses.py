"""Other answers: the model's own first, no repetitions, and each what the model would say after that word."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from popen.data.safe_io import DataError
from popen.lvlm.answer_hypotheses import answer_evidence, answer_hypotheses, preferred_drafts
from popen.lvlm.inference import continue_answers, generate_drafts
from popen.lvlm.packing import question_branches, stack_rows
from popen.preference.sampling import shifted


@pytest.fixture(scope="module")
def unsure(taught, samples):
    """Two scenes that nobody taught, the questions about them, and what the model answers."""
    model, processor = taught
    images = [s.image for s in samples[2:] for _ in s.questions]
    questions = [q.question for s in samples[2:] for q in s.questions]
    return images, questions, generate_drafts(model, processor, images, questions)


def test_the_own_answer_comes_first_and_none_comes_twice(taught, unsure):
    images, questions, drafts = unsure
    found = answer_hypotheses(*taught, images, questions, drafts, count=3, least=1e-4)
    assert [own[0] for own in found] == [d.decoded.text for d in drafts]
    assert all(len(set(own)) == len(own) <= 4 for own in found)
    assert sum(map(len, found)) > 2 * len(found)


def test_no_hypotheses_are_only_the_own_answers(taught, unsure):
    images, questions, drafts = unsure
    found = answer_hypotheses(*taught, images, questions, drafts, count=0)
    assert found == [[d.decoded.text] for d in drafts]


def test_where_there_is_no_doubt_there_is_one_answer(taught, unsure):
    images, questions, drafts = unsure
    found = answer_hypotheses(*taught, images, questions, drafts, count=3, least=0.9)
    assert found == [[d.decoded.text] for d in drafts]


def test_batches_do_not_change_them(taught, unsure):
    images, questions, drafts = unsure
    one, other = (answer_hypotheses(*taught, images, questions, drafts, 3, 1e-3, batch_size=b) for b in (32, 2))
    assert one == other


def test_an_answer_goes_on_as_it_began(taught, unsure):
    """Any beginning of a greedy answer leads to that answer."""
    model, processor = taught
    images, questions, drafts = unsure
    ids = [processor.answer_ids(d.decoded.text) for d in drafts]
    whole = [i for i, draft in enumerate(drafts) if draft.decoded.incomplete == 0 and len(ids[i]) < 90]
    for kept in (0, 1, 3):
        starts = [ids[i][:kept] for i in whole]
        again = continue_answers(model, processor, [images[i] for i in whole], [questions[i] for i in whole], starts)
        assert [a.text for a in again] == [drafts[i].decoded.text for i in whole]


def test_an_answer_without_an_end_is_none(taught, unsure):
    model, processor = taught
    images, questions, _ = unsure
    assert continue_answers(model, processor, images[:1], questions[:1], [()], max_new_tokens=1) == [None]


def test_evidence_by_its_parts(taught, unsure):
    """Each number again, from one answer at a time."""
    model, processor = taught
    images, questions, drafts = unsure
    answers = answer_hypotheses(model, processor, images, questions, drafts, 2, 1e-3)
    found, evidence = answer_evidence(model, processor, images, questions, answers, views=2)
    assert [[d.decoded.text for d in own] for own in found] == answers

    def alone(image, question, answer):
        batch = stack_rows([question_branches(processor, [(question, answer)], "x")], 0)
        inputs = {k: v for k, v in batch.items() if k not in ("token_sequence", "sequence_row")}
        with torch.no_grad():
            return model(**inputs, pixel_values=processor.pixel_values([processor.place(image)[0]]))

    for image, question, own_drafts, own, speaks in zip(images, questions, found, answers, evidence, strict=True):
        with torch.no_grad():
            language = model.encode_pictures(processor.pixel_values([processor.place(image)[0]])).language[0]
        pixels = np.asarray(image.convert("RGB"))
        views = [Image.fromarray(shifted(pixels, right, 0)) for right in (6, -6)]  # a token is 12 pixels wide
        for draft, answer, row in zip(own_drafts, own, speaks, strict=True):
            output = alone(image, question, answer)
            soft = (output.mask_logits - model.config.mask_threshold).sigmoid()
            cover = torch.nn.functional.adaptive_avg_pool2d(soft, 8).flatten(1)
            read = 0.0
            for phrase, weight in zip(draft.decoded.phrases, cover, strict=True):
                pooled = (weight[:, None] * language).sum(0) / weight.sum()
                logps = model.get_output_embeddings()(pooled).log_softmax(-1)
                ids = list(processor.phrase_ids(phrase))
                read += float(logps[ids].mean().detach()) if ids else 0.0
            said = [float(o.logps.sum()) for o in (output, *(alone(view, question, answer) for view in views))]
            expected = [said[0], sum(said) / 3, read, float(output.predicted_iou.sum()), len(draft.embeddings)]
            assert row.tolist() == pytest.approx(expected, abs=1e-3)


def test_the_answer_with_the_most_evidence_is_taken(taught, unsure):
    """Weights that count targets alone: the most of them, or the fewest."""
    model, processor = copy.deepcopy(taught[0]), taught[1]
    images, questions, drafts = unsure
    answers = answer_hypotheses(model, processor, images, questions, drafts, 3, 1e-4)
    counts = [[answer.count("<seg>") for answer in own] for own in answers]
    assert any(len(set(own)) > 1 for own in counts)
    for sign, extreme in ((1.0, max), (-1.0, min)):
        model.config.answer_weights = [0.0, 0.0, 0.0, 0.0, sign]
        chosen = preferred_drafts(model, processor, images, questions, drafts, 3, least=1e-4)
        assert [len(d.embeddings) for d in chosen] == [extreme(own) for own in counts]


def test_without_weights_nothing_is_preferred(taught, unsure):
    images, questions, drafts = unsure
    with pytest.raises(DataError, match=r"answer_weights is not set; run recipes/calibrate\.py --ensemble K"):
        preferred_drafts(*taught, images, questions, drafts, 2)
