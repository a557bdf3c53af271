"""Inference: batching, encoding once, and the same numbers as training sees."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from popen.data.safe_io import DataError
from popen.lvlm.hypotheses import attended_drafts, embedding_hypotheses, hypothesis_scores
from popen.lvlm.inference import Draft, decode_drafts, forced_drafts, generate_drafts, restored_masks
from popen.lvlm.packing import supervised_batch
from popen.lvlm.segmentation import finish


@pytest.fixture(scope="module")
def asked(samples):
    """Pictures of three sizes and questions of several lengths about them; some answers have no target."""
    wide = samples[1].image.resize((150, 100))
    tall = samples[0].image.crop((10, 0, 70, 96))
    rows = [(samples[0].image, q.question) for q in samples[0].questions]
    rows += [(wide, q.question) for q in samples[1].questions[:3]]
    rows += [(tall, samples[0].questions[0].question)]
    return [image for image, _ in rows], [question for _, question in rows]


def assert_equal_answers(one, other):
    assert one.text == other.text and one.incomplete == other.incomplete
    assert [t.phrase for t in one.targets] == [t.phrase for t in other.targets]
    for a, b in zip(one.targets, other.targets, strict=True):
        assert a.mask.shape == b.mask.shape
        assert (a.mask != b.mask).mean() < 1e-3  # a logit within rounding of the threshold may fall either way
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


def test_a_batch_answers_as_one_by_one(taught, asked):
    model, processor = taught
    images, questions = asked
    together = model.segment(images, questions, processor)
    assert sum(len(answer.targets) for answer in together) > 6
    assert any(not answer.targets for answer in together)
    for image, question, answer in zip(images, questions, together, strict=True):
        assert_equal_answers(answer, model.segment([image], [question], processor)[0])
        for target in answer.targets:
            assert target.mask.dtype == bool and target.mask.shape == (image.height, image.width)
            assert 0 < target.confidence < 1
    for answer, other in zip(together, model.segment(images, questions, processor, batch_size=3), strict=True):
        assert_equal_answers(answer, other)


def test_what_was_taught_is_answered(taught, samples):
    model, processor = taught
    questions = samples[0].questions
    answers = model.segment([samples[0].image] * len(questions), [q.question for q in questions], processor)
    assert [a.text for a in answers] == [q.answer for q in questions]
    assert [tuple(t.phrase for t in a.targets) for a in answers] == [q.phrases for q in questions]


def test_a_long_question_does_not_cut_its_neighbours_answer(taught, samples):
    """The short question alone has room for its whole answer, the long one beside it for no more than a group."""
    model, processor = taught
    short = samples[0].questions[0].question
    room = processor.max_length - len(processor.prefix_ids) - len(processor.seg_token_ids) - 2
    long = "x" * (10 + room - len(processor.question_ids("x" * 10)))
    image = samples[0].image
    alone = model.segment([image], [short], processor)[0]
    assert alone.text == samples[0].questions[0].answer
    assert model.segment([image, image], [short, long], processor)[0].text == alone.text


def test_the_same_picture_is_encoded_once(taught, samples, monkeypatch):
    model, processor = taught
    rows, encode = [], model.encode_pictures
    monkeypatch.setattr(model, "encode_pictures", lambda pixels: rows.append(len(pixels)) or encode(pixels))
    first, second = samples[0].image, samples[1].image
    images = [first, second, first, first]
    questions = ["Find the cross.", "Find the cone.", "Find the cone.", "Find the ball."]
    answers = model.segment(images, questions, processor, max_new_tokens=4)
    assert rows == [2] and len(answers) == 4
    rows.clear()
    forced_drafts(model, processor, images, questions, ["It is the ball <seg>."] * 4)
    assert rows == [2]
    rows.clear()
    model.segment([first, first.copy()], questions[:2], processor, max_new_tokens=4)
    assert rows == [2]  # another object is another picture


def test_forced_drafts_equal_forward(tiny, samples):
    model, processor = tiny
    batch = supervised_batch(processor, samples[:2])
    with torch.no_grad():
        output = model(**{k: v for k, v in batch.items() if k not in ("token_sequence", "sequence_row")})
    rows = [(s.image, q.question, q.answer) for s in samples[:2] for q in s.questions]
    order = list(reversed(range(len(rows))))  # drafts come in the order asked, pictures in any
    drafts = forced_drafts(model, processor, *([rows[i][c] for i in order] for c in range(3)), batch_size=1)
    drafts = [drafts[order.index(i)] for i in range(len(rows))]
    assert [d.decoded.text for d in drafts] == [answer for _, _, answer in rows]
    torch.testing.assert_close(torch.cat([d.embeddings for d in drafts]), output.embeddings, atol=1e-4, rtol=1e-4)
    decoded = decode_drafts(model, drafts, batch_targets=4)
    torch.testing.assert_close(torch.cat([logits for logits, _ in decoded]), output.mask_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        torch.cat([quality for _, quality in decoded]), output.predicted_iou, atol=1e-4, rtol=1e-4
    )


def test_generated_states_equal_teacher_forced_states(taught, asked):
    """The states hooked while generating, left-padded and cached, are those of the same words read in one pass."""
    model, processor = taught
    images, questions = asked
    drafts = generate_drafts(model, processor, images, questions)
    forced = forced_drafts(model, processor, images, questions, [d.decoded.text for d in drafts])
    assert sum(len(d.embeddings) for d in drafts) > 6
    for draft, twin in zip(drafts, forced, strict=True):
        assert draft.decoded == twin.decoded and draft.canvas == twin.canvas
        torch.testing.assert_close(draft.embeddings, twin.embeddings, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(draft.features, twin.features, atol=1e-4, rtol=1e-4)


def test_an_answer_cut_off_in_a_group_drops_that_target_only(taught, samples):
    """One token short of the end of the second group."""
    model, processor = taught
    question = next(q for q in samples[0].questions if len(q.masks) == 2)
    ids = processor.answer_ids(question.answer)
    last = max(i for i, token in enumerate(ids) if token == processor.seg_token_ids[-1])
    (answer,) = model.segment([samples[0].image], [question.question], processor, max_new_tokens=last)
    assert len(answer.targets) == 1 and answer.incomplete == 1
    assert answer.targets[0].phrase == question.phrases[0] and answer.text.count("<seg>") == 1


def test_the_threshold_is_read(taught, samples):
    model, processor = copy.deepcopy(taught[0]), taught[1]
    question = samples[0].questions[0]
    areas = []
    for threshold in (-1e3, 0.0, 1e3):
        model.config.mask_threshold = threshold
        (answer,) = model.segment([samples[0].image], [question.question], processor)
        areas.append(answer.targets[0].mask.sum())
    assert areas[0] == 96 * 96 > areas[1] > areas[2] == 0


def test_ensemble(taught, asked):
    model, processor = taught
    images, questions = asked
    single = model.segment(images, questions, processor)
    ensemble = model.segment(images, questions, processor, ensemble=3)
    assert [a.text for a in ensemble] == [a.text for a in single]
    assert [len(a.targets) for a in ensemble] == [len(a.targets) for a in single]
    drafts = generate_drafts(model, processor, images[:1], questions[:1])
    noisy = [[embedding_hypotheses(model, d, 3, 0.5, seed) for d in drafts] for seed in (0, 0, 1)]
    first, again, other = (
        attended_drafts(drafts, own, hypothesis_scores(model, drafts, own), 1.0)[0].embeddings for own in noisy
    )
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert not torch.allclose(first, drafts[0].embeddings)


def test_ensemble_of_a_batch_is_that_of_each(taught, asked):
    model, processor = taught
    images, questions = asked
    together = model.segment(images, questions, processor, ensemble=3)
    for image, question, answer in zip(images, questions, together, strict=True):
        assert_equal_answers(answer, model.segment([image], [question], processor, ensemble=3)[0])
    drafts = generate_drafts(model, processor, images, questions)
    noisy = [embedding_hypotheses(model, d, 3, 0.5, 0) for d in drafts]
    at_once, in_parts = (hypothesis_scores(model, drafts, noisy, batch_targets=size) for size in (64, 2))
    for a, b in zip(at_once, in_parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_ensemble_without_noise_is_the_single_pass(taught, asked):
    model, processor = copy.deepcopy(taught[0]), taught[1]
    model.config.ensemble_noise = 0.0
    single = model.segment(*asked, processor)
    for a, b in zip(single, model.segment(*asked, processor, ensemble=4), strict=True):
        assert_equal_answers(a, b)


def test_ensemble_errors(taught, samples):
    model, processor = copy.deepcopy(taught[0]), taught[1]
    arguments = [samples[0].image], [samples[0].questions[0].question], processor
    with pytest.raises(ValueError, match="ensemble = -1: give K >= 1"):
        model.segment(*arguments, ensemble=-1)
    model.config.embedding_std = None  # never calibrated
    with pytest.raises(ValueError, match="embedding_std"):
        model.segment(*arguments, ensemble=2)


def test_unusable_input_is_named(taught, samples):
    model, processor = taught
    image = samples[0].image
    with pytest.raises(ValueError, match="2 images and 1 questions"):
        model.segment([image, image], ["Find the ball."], processor)
    with pytest.raises(DataError, match="question 1: the question is empty"):
        model.segment([image, image], ["Find the ball.", " "], processor)
    with pytest.raises(DataError, match="image 2: not a PIL image"):
        model.segment([image, image, np.asarray(image)], ["Find the ball."] * 3, processor, batch_size=1)


def test_nothing_asked(taught):
    model, processor = taught
    assert model.segment([], [], processor) == []
    assert forced_drafts(model, processor, [], [], []) == []


def test_a_calibrated_ensemble_answers_as_one_by_one(taught, asked):
    """With other answers and shifted views: an answer does not depend on its neighbours in the batch."""
    model, processor = copy.deepcopy(taught[0]), taught[1]
    model.config.answer_margin, model.config.ensemble_views = 0.0, 2
    images, questions = asked
    together = model.segment(images, questions, processor, ensemble=3)
    for image, question, answer in zip(images, questions, together, strict=True):
        assert_equal_answers(answer, model.segment([image], [question], processor, ensemble=3)[0])


def test_finish_brings_each_mask_to_its_own_picture(taught, samples):
    """Drafts with other pictures' canvases: only the way back differs."""
    model, processor = taught
    sizes = [(96, 96), (300, 200), (31, 77)]
    images = [samples[0].image.resize(size, Image.Resampling.BICUBIC) for size in sizes]
    answer = samples[0].questions[0].answer
    drafts = forced_drafts(model, processor, images, ["Find the cross."] * 3, [answer] * 3)
    assert all(isinstance(draft, Draft) for draft in drafts)
    shapes = [
        a.targets[0].mask.shape
        for a in finish(drafts, decode_drafts(model, drafts), restored_masks(model, drafts), 0.0)
    ]
    assert shapes == [(height, width) for width, height in sizes]
