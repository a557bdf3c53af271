"""Sampled answers: distributed as the softmax says, and the same whatever they are batched with."""

import pytest
import torch

from popen.lvlm.inference import generate_drafts
from popen.lvlm.seeded_sampling import SeededSampling

IDS = torch.zeros(1, 1, dtype=torch.long)


def test_draws_follow_the_softmax():
    """6,000 draws of three tokens with p = 0.6, 0.3, 0.1 at T = 1: each share within 4 standard errors."""
    p = torch.tensor([0.6, 0.3, 0.1])
    sampling = SeededSampling([0], 1.0)
    drawn = torch.stack([sampling(IDS, p.log()[None])[0].argmax() for _ in range(6000)])
    share = torch.bincount(drawn, minlength=3) / 6000
    assert torch.all((share - p).abs() < 4 * (p * (1 - p) / 6000).sqrt())


def test_temperature_sharpens():
    """At T = 1/2 the odds 3 : 1 become 9 : 1."""
    sampling = SeededSampling([1], 0.5)
    drawn = [int(sampling(IDS, torch.tensor([[3.0, 1.0]]).log())[0].argmax()) for _ in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(0.1, abs=0.02)


def test_forbidden_tokens_stay_forbidden():
    scores = torch.tensor([[0.0, -torch.inf]])
    assert all(int(SeededSampling([s], 1.0)(IDS, scores).argmax()) == 0 for s in range(50))


def test_a_row_draws_from_its_own_seed():
    scores = torch.zeros(2, 100)
    both, alone = SeededSampling([5, 7], 1.0)(IDS, scores), SeededSampling([7], 1.0)(IDS, scores[1:])
    assert torch.equal(both[1], alone[0]) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_that_mean_nothing_are_refused(temperature):
    with pytest.raises(ValueError, match="sampling needs one above 0"):
        SeededSampling([0], temperature)


def test_answers_do_not_depend_on_the_batch(taught, samples):
    model, processor = taught
    images = [s.image for s in samples for _ in s.questions]
    questions = [q.question for s in samples for q in s.questions]
    seeds = list(range(len(questions)))
    together = generate_drafts(model, processor, images, questions, seeds=seeds, temperature=2.0)
    apart = generate_drafts(model, processor, images, questions, seeds=seeds, temperature=2.0, batch_size=3)
    greedy = generate_drafts(model, processor, images, questions)
    texts = [[d.decoded.text for d in drafts] for drafts in (together, apart, greedy)]
    assert texts[0] == texts[1] != texts[2]
