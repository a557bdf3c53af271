"""Samplers give what they promise, and the study's numbers are what its tables say."""

import json
import sys

import numpy as np
import pytest
import torch

from eval import sampler_study
from eval.metrics import MaskCounts
from eval.samplers import SAMPLERS
from popen.data.schema import write_dataset
from popen.lvlm.calibration import truth_drafts


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_keeps_the_clean_candidate_and_adds_k_others(taught, samples, name):
    drafts = truth_drafts(*taught, samples[:2])
    found = SAMPLERS[name](*taught, samples[:2], drafts, 3, 0)
    again = SAMPLERS[name](*taught, samples[:2], drafts, 3, 0)
    for draft, own, same in zip(drafts, found, again, strict=True):
        assert own.shape == (len(draft.embeddings), 4, *draft.embeddings.shape[1:])
        assert torch.equal(own[:, 0], draft.embeddings) and torch.equal(own, same)
    moved = torch.cat([(own[:, 1:] - own[:, :1]).flatten(1).norm(dim=1) for own in found])
    assert (moved > 0).all()


def test_mask_numbers_by_hand():
    """Two pictures: the clean mask 5/10 and 8/10; candidates 9/10 and 1/10, and 4/10 and 8/10."""
    table = np.array([[[5, 10, 0], [9, 10, 0.5], [1, 10, 1.5]], [[8, 10, 0], [4, 10, 1], [8, 10, 1]]], float)
    found = sampler_study.mask_numbers(table, ["a", "b"])
    assert found["clean"] == pytest.approx(13 / 20) and found["best_minus_clean"] == pytest.approx(4 / 20)
    np.testing.assert_allclose(found["best_minus_clean_95"], [0, 0.4])
    assert found["mean_iou"] == pytest.approx(0.55) and found["superior_beats_clean"] == 0.5
    assert found["superior_minus_clean_iou"] == pytest.approx(0.2)
    assert found["preference_mined"] == 1 and found["drift"] == 1 and found["targets"] == 2


def test_answer_numbers_by_hand():
    """One question answered 0/10 in greed and 6/10 drawn, one 10/10 and then wrong."""
    rows = [
        ["a", [False, True], [[MaskCounts(0, 10)], [MaskCounts(6, 10)]]],
        ["a", [True, False], [[MaskCounts(10, 10)], [MaskCounts(0, 10), MaskCounts(0, 10)]]],
    ]
    found = sampler_study.answer_numbers(rows)
    assert found["greedy"] == 0.5 and found["best_minus_greedy"] == pytest.approx(0.3)
    assert found["drawn_beats_greedy"] == 0.5 and found["drawn_minus_greedy_iou"] == pytest.approx(-0.2)
    assert found["exact_greedy"] == 0.5 and found["exact_any"] == 1 and found["questions"] == 2


def test_a_study_from_start_to_end(taught, samples, tmp_path, monkeypatch, capsys):
    for part in taught:
        part.save_pretrained(tmp_path / "model")
    write_dataset(samples[:2], tmp_path / "data", "dev")
    argv = ["eval.sampler_study", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "data")]
    argv += ["--candidates", "2", "--temperatures", "1.5", "--out", str(tmp_path / "report.json")]
    monkeypatch.setattr(sys, "argv", argv)
    sampler_study.main()
    report = json.loads((tmp_path / "report.json").read_text())
    targets = sum(len(q.masks) for s in samples[:2] for q in s.questions)
    assert {own["targets"] for own in report["masks"].values()} == {targets} and set(report["masks"]) == set(SAMPLERS)
    assert len({own["clean"] for own in report["masks"].values()}) == 1
    answers = report["answers"]["temperature 1.5"]
    assert answers["questions"] == sum(len(s.questions) for s in samples[:2])
    assert answers["exact_any"] >= answers["exact_greedy"]
    assert "| embedding noise, 0.5 |" in capsys.readouterr().out
