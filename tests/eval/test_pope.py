"""Probes by hand: what is asked, and what the answers are worth."""

import json
import sys

import pytest

from eval import pope
from popen.data.schema import write_dataset

OBJECTS = [("dog", "cat"), ("dog", "cat"), ("dog", "sofa"), ("fish",)]


@pytest.mark.parametrize("negatives", pope.NEGATIVES)
def test_every_picture_is_asked_for_as_much_that_is_there_as_is_not(negatives):
    found = pope.probes(OBJECTS, 2, negatives, seed=0)
    for picture, own in enumerate(OBJECTS):
        here = [p for p in found if p.picture == picture]
        assert sum(p.present for p in here) == sum(not p.present for p in here) == min(2, len(own))
        assert all((p.name in own) == p.present for p in here)
        assert len({p.name for p in here}) == len(here)
    assert found == pope.probes(OBJECTS, 2, negatives, seed=0)


def test_popular_and_adversarial_things_come_first():
    """Of what is not with the fish the dog is most popular; with a sofa came a dog only, and with a dog a cat."""
    popular = pope.probes(OBJECTS, 1, pope.POPULAR, seed=3)
    assert [p.name for p in popular if p.picture == 3 and not p.present] == ["dog"]
    adversarial = pope.probes(OBJECTS, 1, pope.ADVERSARIAL, seed=3)
    assert [p.name for p in adversarial if p.picture == 2 and not p.present] == ["cat"]


def test_random_things_follow_the_seed():
    many = [tuple(f"thing {i}" for i in range(j, j + 5)) for j in range(20)]
    assert pope.probes(many, 3, pope.RANDOM, 0) != pope.probes(many, 3, pope.RANDOM, 1)


def test_a_picture_with_everything_or_nothing_is_left_out():
    assert pope.probes([("dog",), ()], 1, pope.RANDOM, 0) == []


def test_scores_by_hand():
    """There: yes, yes, no. Not there: yes, no. Precision 2/3, recall 2/3, accuracy 3/5, yes 3/5."""
    found = pope.scores([(True, True), (True, True), (True, False), (False, True), (False, False)])
    assert found == pytest.approx({"accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes": 0.6})
    assert pope.scores([(True, False)])["f1"] == 0.0 and pope.scores([])["accuracy"] == 0.0


@pytest.mark.parametrize(
    "text, targets, yes",
    [("It is the ball <seg>.", 1, True), ("Yes.", 0, True), ("There is none.", 0, False), ("Eyes.", 0, False)],
)
def test_a_mask_or_a_yes_is_a_yes(text, targets, yes):
    assert pope.says_yes(text, targets) == yes


def test_a_run_from_start_to_end(monkeypatch, taught, samples, tmp_path):
    for part in taught:
        part.save_pretrained(tmp_path / "model")
    write_dataset(samples, tmp_path / "data", "dev")
    argv = ["eval.pope", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--each", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path / "deep" / "pope.json")])
    pope.main()
    report = json.loads((tmp_path / "deep" / "pope.json").read_text())
    for negatives in pope.NEGATIVES:
        assert report[negatives]["n"] == 2 * len(samples) and 0 <= report[negatives]["accuracy"] <= 1
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path / "x.json"), "--template", "Find it."])
    with pytest.raises(SystemExit):
        pope.main()
