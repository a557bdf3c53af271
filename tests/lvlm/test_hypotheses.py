"""Hypotheses of a target: from noise on its embedding and from noise on the picture."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from popen.lvlm.calibration import truth_drafts
from popen.lvlm.hypotheses import embedding_hypotheses, hypothesis_scores, uniform_drafts, view_hypotheses
from popen.lvlm.inference import forced_drafts
from popen.preference.sampling import noise_rectangle


def noise_of(model, drafts, count, noise):
    return [embedding_hypotheses(model, draft, count, noise, seed=0) for draft in drafts]


def test_embedding_hypotheses(taught, samples):
    """The clean one first, then noise of the calibrated spread, the same for the same seed."""
    model, processor = taught
    draft = truth_drafts(model, processor, samples[:1])[0]
    found = embedding_hypotheses(model, draft, 500, 0.5, seed=3)
    assert torch.equal(found[:, 0], draft.embeddings)
    assert torch.equal(found, embedding_hypotheses(model, draft, 500, 0.5, seed=3))
    spread = (found[:, 1:] - found[:, :1]).std((0, 1, 3))
    torch.testing.assert_close(spread, 0.5 * torch.tensor(model.config.embedding_std), rtol=0.05, atol=0)


def test_view_hypotheses_are_the_views_embeddings(taught, samples):
    """Hypothesis k + 1 is what the model says when it is shown view k alone."""
    model, processor = taught
    sample = samples[1]
    clean = truth_drafts(model, processor, [sample])
    rectangles = [noise_rectangle(seed, 0.2, 0.4, 1.0) for seed in (1, 2)]
    questions = [q.question for q in sample.questions]
    images = [sample.image] * len(questions)
    found = view_hypotheses(model, processor, images, questions, clean, [rectangles] * len(questions))
    assert [f.shape[:2] for f in found] == [(len(q.masks), 3) for q in sample.questions]
    for k, rectangle in enumerate(rectangles, 1):
        view = Image.fromarray(rectangle.apply(np.asarray(sample.image)))
        for question, draft, own in zip(sample.questions, clean, found, strict=True):
            (alone,) = forced_drafts(model, processor, [view], [question.question], [question.answer])
            torch.testing.assert_close(own[:, k], alone.embeddings, atol=1e-4, rtol=1e-4)
            assert torch.equal(own[:, 0], draft.embeddings)
    assert (found[0][:, 1] - found[0][:, 0]).abs().max() > 1e-3


def test_uniform_drafts_average_the_clean_and_the_noisy(taught, samples):
    """Without noise the mean is the clean embedding; with K copies its spread falls as noise · √K / (K + 1)."""
    model, processor = taught
    questions = [q.question for q in samples[0].questions]
    images, answers = [samples[0].image] * len(questions), [q.answer for q in samples[0].questions]
    drafts = forced_drafts(model, processor, images, questions, answers)
    for draft, mean in zip(drafts, uniform_drafts(drafts, noise_of(model, drafts, 4, 0.0)), strict=True):
        torch.testing.assert_close(mean.embeddings, draft.embeddings)
    noisy = uniform_drafts(drafts, noise_of(model, drafts, 16, 1.0))
    std = torch.tensor(model.config.embedding_std)[:, None]
    moved = torch.cat([(n.embeddings - d.embeddings) / std for n, d in zip(noisy, drafts, strict=True)])
    assert float(moved.std()) == pytest.approx(np.sqrt(16) / 17, rel=0.15)


def test_an_ensemble_in_bfloat16(taught, samples):
    """Scores to the precision of eight bits; an ensemble answers as many targets as in float32."""
    model, processor = taught
    half = copy.deepcopy(model).to(torch.bfloat16)
    drafts = truth_drafts(model, processor, samples[:1])
    full = hypothesis_scores(model, drafts, noise_of(model, drafts, 3, 0.5))
    low_drafts = truth_drafts(half, processor, samples[:1])
    low = hypothesis_scores(half, low_drafts, noise_of(half, low_drafts, 3, 0.5))
    assert {own.dtype for own in low} == {torch.bfloat16}
    low, full = torch.cat(low).float(), torch.cat(full)
    torch.testing.assert_close(low, full, rtol=0.1, atol=0.1 * float(full.abs().max()))
    image, question = samples[0].image, samples[0].questions[0].question
    found, expected = (own.segment([image], [question], processor, ensemble=3)[0] for own in (half, model))
    assert len(found.targets) == len(expected.targets)
