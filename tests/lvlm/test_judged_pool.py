"""A judge's choices become data: the best of what was drawn, none where none was good, wrong ones when asked for."""

from dataclasses import replace

import pytest
import torch

from popen.data.safe_io import DataError
from popen.lvlm import judged_pool
from popen.lvlm.inference import generate_drafts, restored_masks
from popen.lvlm.judged_pool import JudgeArguments, judged_samples
from popen.preference.judging import iou_with_truth

SETTINGS = {"answers": 2, "masks": 4, "embedding_noise": 1.0, "least_quality": 0.1}


def test_what_a_model_knows_by_heart_is_preferred(taught, samples):
    """The taught model gives the true answers of the first two scenes; only its masks are rough."""
    kept, outcomes = judged_samples(*taught, samples[:2], JudgeArguments(**SETTINGS))
    assert outcomes[judged_pool.PREFERRED] > outcomes[judged_pool.NONE_GOOD]
    truths = {q.id: q for s in samples[:2] for q in s.questions}
    for sample in kept:
        for question in sample.questions:
            true = truths[question.id]
            assert (question.answer, question.phrases) == (true.answer, true.phrases)
            assert len(question.masks) == len(true.masks)
            sample._check()


def test_a_judged_mask_is_the_best_of_those_shown(taught, samples):
    """Never worse than the model's own, which is among them, and better for some."""
    model, processor = taught
    args = JudgeArguments(**SETTINGS | {"masks": 8, "answers": 1})
    kept, _ = judged_samples(model, processor, samples[:2], args)
    asked = [(sample, question) for sample in kept for question in sample.questions]
    drafts = generate_drafts(model, processor, [s.image for s, _ in asked], [q.question for _, q in asked])
    truths = {q.id: q for s in samples[:2] for q in s.questions}
    own, judged = [], []
    for (sample, question), logits in zip(asked, restored_masks(model, drafts), strict=True):
        valid = torch.from_numpy(~sample.decoded_ignore())
        shown = logits > model.config.mask_threshold
        chosen, true = (torch.from_numpy(q.decoded_masks(*valid.shape)) for q in (question, truths[question.id]))
        own += [float(iou_with_truth(mask[None], one, valid)) for mask, one in zip(shown, true, strict=True)]
        judged += [float(iou_with_truth(mask[None], one, valid)) for mask, one in zip(chosen, true, strict=True)]
    assert all(b >= a for a, b in zip(own, judged, strict=True)) and sum(judged) > sum(own)


def test_no_answer_is_good_enough(taught, samples):
    kept, outcomes = judged_samples(*taught, samples[2:], JudgeArguments(**SETTINGS | {"least_quality": 1.0}))
    assert outcomes[judged_pool.NONE_GOOD] > 0
    asked = {q.id for s in samples[2:] for q in s.questions}
    left = {q.id for s in kept for q in s.questions}
    assert left < asked and len(left) == outcomes[judged_pool.PREFERRED]
    assert all(sample.questions for sample in kept)


def test_the_same_seed_judges_the_same(taught, samples):
    args = JudgeArguments(**SETTINGS | {"flips": 0.5, "temperature": 2.0})
    first, again = (judged_samples(*taught, samples[:2], args)[0] for _ in range(2))
    assert [s.questions for s in first] == [s.questions for s in again]
    other = judged_samples(*taught, samples[:2], replace(args, seed=1))[0]
    assert [s.questions for s in first] != [s.questions for s in other]


def test_a_judge_that_is_always_wrong_takes_another_mask(taught, samples):
    settings = SETTINGS | {"answers": 1}
    right, _ = judged_samples(*taught, samples[:2], JudgeArguments(**settings))
    wrong, _ = judged_samples(*taught, samples[:2], JudgeArguments(**settings, flips=1.0))
    pairs = [(a, b) for s, t in zip(right, wrong, strict=True) for a, b in zip(s.questions, t.questions, strict=True)]
    assert all(a.answer == b.answer for a, b in pairs)  # there was no other
    assert any(a.masks != b.masks for a, b in pairs)


def test_of_equal_answers_the_own_one_is_shown_once(taught, samples, monkeypatch):
    """All draws say the same: one candidate, so that flips have nothing to fall on."""
    asked = [(s, q) for s in samples[:1] for q in s.questions]
    drafts = generate_drafts(*taught, [s.image for s, _ in asked], [q.question for _, q in asked])
    logits = restored_masks(taught[0], drafts)
    monkeypatch.setattr(judged_pool, "_drawn_answers", lambda *_: [(drafts, logits)] * 3)
    seen = []
    monkeypatch.setattr(judged_pool, "judged_best", lambda qualities, *_: seen.append(len(qualities)) or 0)
    judged_samples(*taught, samples[:1], JudgeArguments(**SETTINGS | {"masks": 1}))
    assert set(seen) == {1, 2}  # one answer; for each target its own mask and another


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"answers": 0}, "at least 1 of each"),
        ({"masks": 0}, "masks = 0"),
        ({"flips": 1.5}, "flips = 1.5"),
        ({"least_quality": -0.1}, "least_quality = -0.1"),
        ({"temperature": 0.0}, "temperature = 0.0"),
    ],
)
def test_impossible_settings_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        JudgeArguments(**bad)
