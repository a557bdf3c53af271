"""Ways to choose an answer, by hand and from start to end."""

import json
import sys

import numpy as np
import pytest
import torch

from eval import answer_study
from eval.answer_study import Candidates
from popen.data.schema import write_dataset


@pytest.fixture
def found():
    """Two questions of two pictures: an answer that leaves something and is worse, and one that is right alone."""
    doubt = Candidates(
        "a", "multi", torch.tensor([[-0.5, -0.7], [-1.5, -1.5]]), torch.tensor([-5.0, 0.0]),
        np.array([[50, 100, 0, 1, 2], [90, 100, 1, 0, 3]], float),
    )  # fmt: skip
    sure = Candidates(
        "b", "relation", torch.tensor([[-0.01, -0.01]]), torch.tensor([-5.0]), np.array([[80, 100, 1, 0, 1]], float)
    )
    return [doubt, sure]


def test_ways_by_hand(found):
    chosen = {(k, name, start): own for k, name, start, own in answer_study.ways(found)}
    assert chosen[0, "the model's own answer", 0.0] == [0, 0]
    assert chosen[8, "log p over shifted views", 0.0] == [0, 0]
    assert chosen[8, "nothing left", 0.0] == chosen[2, "log p over shifted views + nothing left", 0.5] == [1, 0]
    assert chosen[4, "best by truth (oracle)", 0.0] == [1, 0]


def test_numbers_by_hand(found):
    """170 of 200 pixels instead of 130; one picture gains 0.4 alone, the other nothing."""
    row = answer_study.measure(found, 8, "x", 0.0, [1, 0])
    assert (row["ciou"], row["exact"], row["chair_i"]) == (0.85, 1.0, 0.0)
    assert row["gain"] == pytest.approx(0.2) and row["gain_95"] == pytest.approx([0, 0.4])
    assert row["exact_by_kind"] == {"multi": 1.0, "relation": 1.0}
    own = answer_study.measure(found, 0, "own", 0.0, [0, 0])
    assert own["gain"] == 0 and own["exact"] == 0.5 and own["chair_i"] == pytest.approx(1 / 3)


def test_nothing_against_nothing_is_right():
    assert answer_study.oracle(np.array([[0, 50, 0, 0, 0], [0, 0, 1, 0, 0]], float)) == 1


def test_a_study_from_start_to_end(taught, samples, tmp_path, monkeypatch, capsys):
    for part in taught:
        part.save_pretrained(tmp_path / "model")
    write_dataset(samples, tmp_path / "data", "dev")
    argv = ["eval.answer_study", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--views", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path / "report.json")])
    answer_study.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["questions"] == sum(len(s.questions) for s in samples)
    own, *others = report["rows"]
    assert own["gain"] == 0 and len(others) == 3 * (2 * len(answer_study.SCORES) + 1)
    assert all(row["gain"] == pytest.approx(row["ciou"] - own["ciou"]) for row in others)
    assert "| nothing left |" in capsys.readouterr().out
