"""The preference head learns an ordering that can be seen in its evidence."""

import copy

import datasets
import pytest
import torch

from popen.data.preference_schema import SEG_FEATURES
from popen.lvlm.preference_head import PreferenceHead
from popen.training.preference_head import head_tensors, pair_accuracy, train_head

WIDTH = 2 * 4 + 2 * 4 + 5  # one scale of 4 channels: embedding, offset, two pooled features, five numbers


class FirstNumber(torch.nn.Module):
    """Scores a hypothesis by the first number of its evidence."""

    def forward(self, evidence_TKF):
        return evidence_TKF[..., 0]


@pytest.fixture
def hypotheses():
    """120 targets with 5 hypotheses each, whose IoU follows from one number of the evidence."""
    evidence = torch.randn(120, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    return evidence, evidence[..., 7].sigmoid()


def head():
    torch.manual_seed(0)
    return PreferenceHead(dim=4, scales=1)


def test_the_head_learns_a_visible_ordering(hypotheses):
    evidence, ious = hypotheses
    learner = head()
    before = pair_accuracy(learner, evidence[:40], ious[:40], 0.02)
    losses = train_head(learner, evidence[40:], ious[40:], 150, 32, 3e-3, 0.02, seed=0)
    assert len(losses) == 150 and losses[-1] < 0.5 * losses[0]
    assert before < 0.75 and pair_accuracy(learner, evidence[:40], ious[:40], 0.02) > 0.9


def test_training_is_drawn_by_its_seed(hypotheses):
    first, again, other = (train_head(head(), *hypotheses, 5, 16, 1e-3, 0.02, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_ties_teach_nothing(hypotheses):
    learner = head()
    before = copy.deepcopy(learner.state_dict())
    assert train_head(learner, hypotheses[0], torch.full((120, 5), 0.5), 4, 16, 1e-2, 0.02, seed=0) == []
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


def test_pair_accuracy_by_hand():
    """IoUs .9 .5 .1 scored 3 1 2: of the pairs .9>.5, .9>.1, .5>.1 the last is the wrong way round: 2/3."""
    evidence = torch.tensor([[[3.0], [1.0], [2.0]]])
    ious = torch.tensor([[0.9, 0.5, 0.1]])
    assert pair_accuracy(FirstNumber(), evidence, ious, 0.02) == pytest.approx(2 / 3)
    assert pair_accuracy(FirstNumber(), -evidence, ious, 0.02) == pytest.approx(1 / 3)


def test_pairs_within_the_margin_do_not_count():
    """Only .9 > .5 is 0.3 apart; an equal score is not right."""
    ious = torch.tensor([[0.9, 0.5, 0.65]])
    assert pair_accuracy(FirstNumber(), torch.tensor([[[2.0], [1.0], [9.0]]]), ious, 0.3) == 1.0
    assert pair_accuracy(FirstNumber(), torch.tensor([[[1.0], [1.0], [9.0]]]), ious, 0.3) == 0.0


def test_the_head_reads_the_evidence_it_makes():
    learner = PreferenceHead(dim=4, scales=2)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 5, 2, 4, generator=generator)
    logits = torch.randn(3, 5, 16, 16, generator=generator)
    evidence = learner.evidence(embeddings, logits, torch.randn(3, 4, 8, 8, generator=generator))
    assert evidence.shape == (3, 5, 2 * 2 * 4 + 2 * 4 + 5)
    assert learner(evidence).shape == (3, 5)


def mined(targets):
    return datasets.Dataset.from_list([{"id": "a", "row": 0, "targets": targets}], features=SEG_FEATURES)


def test_tensors_of_mined_targets():
    target = {
        "index": 0, "ious": [0.5, 0.75], "superior": 1, "medium": -1, "inferior": 0, "embeddings": [0.0] * 8,
        "evidence": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "regions": [],
    }  # fmt: skip
    evidence, ious = head_tensors(mined([target, target]), scales=1)
    assert ious.tolist() == [[0.5, 0.75]] * 2
    assert evidence.tolist() == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]] * 2


def test_no_mined_target_is_an_error():
    with pytest.raises(ValueError, match="no segmentation preference"):
        head_tensors(mined([]), scales=1)
