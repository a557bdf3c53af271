"""Other answers: the model's own first, no repetitions, and each what the model would say after that word."""

import copy
import math

import pytest
import torch

from popen.lvlm import answer_hypotheses as module
from popen.lvlm.answer_hypotheses import answer_hypotheses, preferred_drafts, scored_answers
from popen.lvlm.answer_likelihood import view_logps
from popen.lvlm.erased_views import denials, nothing_left
from popen.lvlm.inference import continue_answers, forced_drafts, generate_drafts
from popen.preference.answers import answer_scores


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


def test_the_best_score_is_given(taught, unsure):
    """Where another answer scores better its draft is taken, words, embeddings and all."""
    model, processor = copy.deepcopy(taught[0]), taught[1]
    images, questions, drafts = unsure
    model.config.answer_margin, model.config.ensemble_views = 0.0, 2
    chosen = preferred_drafts(model, processor, images, questions, drafts, 3, least=1e-4)
    answers = answer_hypotheses(model, processor, images, questions, drafts, 3, 1e-4)
    scores = scored_answers(model, processor, images, questions, answers, 2)
    logps = view_logps(model, processor, images, questions, answers, 2)
    spoken = denials(model, processor, images, questions)
    left = nothing_left(model, processor, images, questions, answers, spoken)
    full = [answer_scores(own, other) for own, other in zip(logps, left, strict=True)]
    for found, whole in zip(scores, full, strict=True):
        seen = found.isfinite()
        torch.testing.assert_close(found[seen], whole[seen], atol=1e-2, rtol=0)
        assert whole[int(found.argmax())] >= whole.max() - 1e-2  # nobody who was not asked could have won
    best = [own[int(found.argmax())] for own, found in zip(answers, scores, strict=True)]
    assert [d.decoded.text for d in chosen] == best
    moved = [i for i, (a, b) in enumerate(zip(chosen, drafts, strict=True)) if a is not b]
    assert moved, "no answer changed"
    for i in moved:
        (alone,) = forced_drafts(model, processor, images[i : i + 1], questions[i : i + 1], best[i : i + 1])
        torch.testing.assert_close(chosen[i].embeddings, alone.embeddings, atol=1e-4, rtol=1e-4)


def test_only_answers_that_can_still_win_are_asked(monkeypatch):
    """The likeliest other answer falls to −0.8: one at −0.6 is asked and falls to −2.6, one at −3 is not."""
    asked = []

    def left(_model, _processor, _images, _questions, answers, spoken, _batch_size):
        assert spoken == ["no", None]
        asked.append(answers)
        return [torch.tensor([{"own": -0.1, "b": -0.3, "c": -2.0}[a] for a in own]) for own in answers]

    logps = [torch.tensor([[-1.0, -1.0], [-0.4, -0.6], [-0.6, -0.6], [-3.0, -3.0]]), torch.tensor([[-1.0, -1.0]])]
    monkeypatch.setattr(module, "view_logps", lambda *_: logps)
    monkeypatch.setattr(module, "denials", lambda *_, **__: ["no", None])
    monkeypatch.setattr(module, "nothing_left", left)
    first, alone = scored_answers(None, None, ["x", "y"], ["q", "r"], [["own", "b", "c", "d"], ["own"]], 1)
    assert asked == [[["own", "b"], ["own"]], [["c"], []]]
    assert first.tolist() == pytest.approx([-1.1, -0.8, -2.6, -math.inf]) and alone.tolist() == pytest.approx([-1.1])


@pytest.mark.parametrize("margin", [None, 1e6])
def test_without_a_margin_or_beyond_it_every_answer_stays(taught, unsure, margin):
    model, processor = copy.deepcopy(taught[0]), taught[1]
    images, questions, drafts = unsure
    model.config.answer_margin = margin
    chosen = preferred_drafts(model, processor, images, questions, drafts, 3, least=1e-4)
    assert all(a is b for a, b in zip(chosen, drafts, strict=True))
