"""The ensemble study: its parts by hand, and a run from start to end in small."""

import json
import sys

import pytest
import torch

from eval import ensemble_study
from eval.ensemble_ways import COUNTS, NAMES, Hypotheses, counts, oracle, reliability, ways
from popen.data.schema import write_dataset
from popen.lvlm.canvas import Canvas
from popen.lvlm.mining import MiningArguments, mine


def one_target(logits_KHW, scores):
    """Hypotheses of a single target in a picture of 2 × 2 pixels whose true mask is the upper row."""
    embeddings = torch.arange(len(logits_KHW), dtype=torch.float32)[None, :, None, None].expand(1, -1, 1, 2)
    truth = torch.tensor([[True, True], [False, False]])
    return Hypotheses(
        embeddings, logits_KHW[None], dict.fromkeys(NAMES, scores[None]), torch.tensor([0.5]), (),
        [Canvas.fit(2, 2, 2)], [truth], [torch.ones(2, 2, dtype=torch.bool)], ["p"],
    )  # fmt: skip


def test_counts_by_hand():
    found = one_target(torch.tensor([[[1.0, -1.0], [1.0, -1.0]]]), torch.zeros(1))
    intersection, union = counts(found, found.logits[:, 0], torch.tensor([0.0, 2.0]))
    assert intersection.tolist() == [[1], [0]] and union.tolist() == [[3], [2]]


def test_the_oracle_takes_the_best_of_the_first_k():
    wrong, right = torch.full((2, 2), -1.0), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    found = one_target(torch.stack([wrong, wrong, wrong, right]), torch.zeros(4))
    assert [oracle(found, 0.0, k)[0].item() for k in (2, 3)] == [0, 2]


def test_ways_are_what_they_say():
    """Nine hypotheses with logits k everywhere; the score likes the third most."""
    logits = torch.arange(9.0)[:, None, None].expand(9, 2, 2)
    scores = torch.tensor([0.0, 1.0, 9.0, *[0.5] * 6])
    found = one_target(logits, scores)
    sharp = {
        (k, how, name): 4.0 for k in COUNTS for how in ("attended embeddings", "attended logits") for name in NAMES
    }
    every = dict(ways(found, lambda e: e[:, 0, 0, None, None].expand(-1, 2, 2), dict.fromkeys(NAMES, 1.0), sharp))
    assert len(every) == 1 + len(COUNTS) * (2 + 3 * len(NAMES))
    assert every[0, "single", "", 0.0].unique().item() == 0
    assert (
        every[4, "uniform embeddings", "", 0.0].unique().item() == every[4, "uniform logits", "", 0.0].unique().item()
    )
    assert every[8, "uniform logits", "", 0.0].unique().item() == 4
    for name in NAMES:
        assert every[2, "best", name, 0.0].unique().item() == 2
        for how in ("attended embeddings", "attended logits"):
            assert every[8, how, name, 4.0].mean().item() == pytest.approx(2, abs=1e-3)
    assert len(list(ways(found, lambda e: e[:, 0, 0, None, None], dict.fromkeys(NAMES, 1.0), None))) > len(every)


def test_reliability_of_a_calibrated_prediction():
    predicted = torch.linspace(0, 1, 100)
    bins = reliability(predicted, predicted)
    assert len(bins) == 10 and sum(b["n"] for b in bins) == 100
    assert all(b["predicted"] == pytest.approx(b["true"]) for b in bins)
    assert [b["predicted"] for b in bins] == sorted(b["predicted"] for b in bins)


def test_a_study_from_start_to_end(monkeypatch, taught, samples, tmp_path, capsys):
    for part in taught:
        part.save_pretrained(tmp_path / "model")
    rows = write_dataset(samples, tmp_path / "data", "train")
    for split in ("calibration", "dev"):
        write_dataset(samples[:2], tmp_path / "data", split)
    settings = MiningArguments(views="embedding", candidates=4, margin=0.005, embedding_noise=1.0, streams="seg")
    mine(*taught, rows, range(len(rows)), str(tmp_path / "model"), tmp_path / "mined", settings)
    argv = [
        "x",
        "--model",
        str(tmp_path / "model"),
        "--base",
        str(tmp_path / "model"),
        "--data",
        str(tmp_path / "data"),
    ]
    argv += ["--preferences", str(tmp_path / "mined"), "--steps", "5", "--out", str(tmp_path / "study.json")]
    monkeypatch.setattr(sys, "argv", argv)
    ensemble_study.main()
    report = json.loads((tmp_path / "study.json").read_text())
    by = {(r["k"], r["how"], r["score"]): r for r in report["rows"]}
    assert by[0, "single", ""]["gain"] == 0
    for count in COUNTS:
        others = [r["ciou"] for (k, how, _), r in by.items() if k == count and how == "best"]
        assert len(others) == len(NAMES) and (count, "oracle", "") in by
    assert "| 8 | attended embeddings | head |" in capsys.readouterr().out
    assert sum(b["n"] for b in report["reliability"]) == sum(len(q.masks) for s in samples[:2] for q in s.questions)
