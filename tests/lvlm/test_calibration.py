"""Threshold and spread, on cases whose answer is known."""

import math
from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch

from popen.data import rle
from popen.data.schema import empty_ignore
from popen.lvlm import calibration
from popen.lvlm.canvas import Canvas
from popen.lvlm.hypotheses import attended_drafts, embedding_hypotheses, hypothesis_scores
from popen.lvlm.inference import Draft, restored_masks
from popen.lvlm.processing_popen import DecodedAnswer
from popen.preference.answers import best_margin, preferred_answer


def draft(targets, canvas=None):
    decoded = DecodedAnswer("", ("",) * targets, ((0,),) * targets, 0)
    return Draft(decoded, torch.zeros(targets, 2, 4), (), canvas or Canvas.fit(96, 96, 96))


@pytest.fixture
def decided(samples):
    """One target over the left third: logit 1.1 inside, 0.9 outside, and 3 in a corner outside the truth."""
    mask = np.zeros((96, 96), bool)
    mask[:, :32] = True
    logits = torch.where(torch.from_numpy(mask), 1.1, 0.9)[None]
    logits[0, :24, 64:] = 3.0
    asked = samples[0].questions[0]
    target = replace(asked, masks=(rle.encode(mask),), phrases=("x",))
    none = replace(asked, id="none", masks=(), phrases=())
    sample = replace(samples[0], questions=(none, target), ignore=empty_ignore(96, 96))
    return sample, [torch.zeros(0, 96, 96), logits]


def test_the_best_threshold_is_found(decided):
    """Only 1.0 of the grid lies between 0.9 and 1.1; there I = 96·32, U = 96·32 + 24·32, so cIoU = 96 / 120."""
    sample, logits = decided
    assert calibration.best_threshold([sample], logits) == (1.0, pytest.approx(96 / 120))


def test_the_best_threshold_is_that_of_pixels_not_of_targets(samples):
    """Below 0.75 a large target is whole and a small one drowns, above it the other way round.

    cIoU: (4608 + 16) / (4608 + 64) = 0.990 below, (4128 + 16) / (4608 + 16) = 0.896 above. The mean IoU would say
    (1 + 0.25) / 2 = 0.625 below and (0.896 + 1) / 2 = 0.948 above.
    """
    truths, logits = np.zeros((2, 96, 96), bool), torch.full((2, 96, 96), -2.5)
    truths[0, :, :48], truths[1, :4, :4] = True, True
    logits[torch.from_numpy(truths)] = 2.5
    logits[0, :, 43:48] = logits[1, 10:14, :12] = 0.75
    question = replace(samples[0].questions[0], masks=tuple(map(rle.encode, truths)), phrases=("x", "y"))
    sample = replace(samples[0], questions=(question,), ignore=empty_ignore(96, 96))
    threshold, best = calibration.best_threshold([sample], [logits])
    assert threshold < 0.75 and best == pytest.approx(4624 / 4672)


def test_counts_are_integers_per_threshold_and_target(decided):
    sample, logits = decided
    intersection, union = calibration.threshold_counts([sample], logits, torch.tensor([0.0, 1.0, 4.0]))
    assert intersection.dtype == union.dtype == torch.int64
    assert intersection.tolist() == [[96 * 32], [96 * 32], [0]]
    assert union.tolist() == [[96 * 96], [96 * 32 + 24 * 32], [96 * 32]]


def test_ignored_pixels_do_not_count(decided):
    """The wrong corner is ignored: cIoU is 1."""
    sample, logits = decided
    ignore = np.zeros((96, 96), bool)
    ignore[:24, 64:] = True
    sample = replace(sample, ignore=rle.encode(ignore))
    assert calibration.best_threshold([sample], logits) == (1.0, 1.0)


def test_embedding_spread_by_hand():
    """Scale 0: channels (0, 2) and (0, 4) have standard deviations √2 and 2√2; scale 1 is constant."""
    first, second = torch.zeros(1, 2, 2), torch.tensor([[[2.0, 4.0], [0.0, 0.0]]])
    drafts = [replace(draft(1), embeddings=e) for e in (first, second)]
    spread = calibration.embedding_spread(drafts)
    assert spread == [pytest.approx(1.5 * sqrt(2)), 0.0]


def test_embedding_spread_needs_two_targets():
    with pytest.raises(ValueError, match="1 targets: the embedding spread needs at least 2"):
        calibration.embedding_spread([draft(1), draft(0)])


def test_truth_drafts_are_one_per_question_in_order(tiny, samples):
    model, processor = tiny
    drafts = calibration.truth_drafts(model, processor, samples[:3], batch_size=2)
    questions = [q for s in samples[:3] for q in s.questions]
    assert [d.decoded.text for d in drafts] == [q.answer for q in questions]
    assert [d.decoded.phrases for d in drafts] == [q.phrases for q in questions]


def test_a_taught_model_calibrates(taught, samples):
    """The found threshold is at least as good as 0, and the spread is what the configuration holds."""
    model, processor = taught
    drafts = calibration.truth_drafts(model, processor, samples[:2])
    logits = restored_masks(model, drafts)
    threshold, best = calibration.best_threshold(samples[:2], logits)
    intersection, union = calibration.threshold_counts(samples[:2], logits, torch.tensor([0.0]))
    assert -2 <= threshold <= 2 and best >= float(intersection.sum() / union.sum()) > 0.1
    assert calibration.embedding_spread(drafts) == pytest.approx(model.config.embedding_std)


def test_nothing_to_count(samples):
    none = replace(samples[0], questions=(replace(samples[0].questions[0], masks=(), phrases=()),))
    intersection, union = calibration.threshold_counts([none], [torch.zeros(0, 96, 96)], torch.tensor([0.0, 1.0]))
    assert intersection.shape == union.shape == (2, 0)


def test_the_ensemble_that_is_found_is_the_best_of_those_tried(taught, samples):
    model, processor = taught
    drafts = calibration.truth_drafts(model, processor, samples[:2])
    sharpness, threshold, best = calibration.best_ensemble(model, processor, samples[:2], drafts, 3, views=0)
    assert sharpness in calibration.SHARPNESSES and threshold in calibration.THRESHOLDS
    hypotheses = [embedding_hypotheses(model, d, 3, model.config.ensemble_noise, seed=0) for d in drafts]
    scores = hypothesis_scores(model, drafts, hypotheses)
    tried = [
        calibration.best_threshold(
            samples[:2], restored_masks(model, attended_drafts(drafts, hypotheses, scores, value))
        )[1]
        for value in calibration.SHARPNESSES
    ]
    assert best == pytest.approx(max(tried))


def test_the_margin_of_answers_is_the_best_of_those_tried(monkeypatch, taught, samples):
    """On scenes that nobody taught: no margin gives better masks on average than the one found."""
    model, processor = taught
    seen = []

    def noted(scores, qualities, margins):
        seen.append((scores, qualities))
        return best_margin(scores, qualities, margins)

    monkeypatch.setattr(calibration, "best_margin", noted)
    found = calibration.best_answer_margin(model, processor, samples[2:], 3, 1)
    ((scores, qualities),) = seen
    assert scores and all(own.shape == q.shape and len(q) > 1 for own, q in zip(scores, qualities, strict=True))
    assert all(0 <= value <= 1 for q in qualities for value in q.tolist())

    def quality(margin):
        return sum(float(q[preferred_answer(own, margin)]) for own, q in zip(scores, qualities, strict=True))

    assert quality(found) == max(quality(margin) for margin in calibration.MARGINS)


def test_without_doubt_no_other_answer_is_given(taught, samples):
    model, processor = taught
    assert calibration.best_answer_margin(model, processor, samples[:1], 0, 0) == math.inf
