"""The evaluation of a model from start to end, on four scenes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trl import TrlParser

from eval import arms, segmentation
from popen.data.schema import write_dataset
from popen.lvlm.loading import load_model
from popen.preference.hallucination import name_pattern
from popen.recipe import run

ROOT = Path(segmentation.__file__).parent
EVALUATIONS = sorted((ROOT / "evaluations").glob("*.yaml"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, taught, samples):
    """A model folder and a data set folder with the split `dev`."""
    root = tmp_path_factory.mktemp("evaluation")
    for part in taught:
        part.save_pretrained(root / "model")
    write_dataset(samples, root / "data", "dev")
    return root / "model", root / "data"


def evaluate(monkeypatch, folders, out, *options):
    model, data = folders
    argv = ["eval.segmentation", "--model", str(model), "--data", str(data), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", argv)
    run(segmentation.main, segmentation.SegmentationArguments)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    return rows, json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("answers", ["free", "forced"])
def test_every_question_is_scored_once_in_every_arm(monkeypatch, folders, tmp_path, samples, answers):
    rows, summary = evaluate(
        monkeypatch, folders, tmp_path, "--answers", answers, "--ensemble", "2", "--controls", "--max-new-tokens", "40"
    )
    asked = [q.id for s in samples for q in s.questions]
    assert [row["id"] for row in rows] == asked
    assert summary["answers"] == answers and summary["split"] == "dev"
    assert (summary["pictures"], summary["questions"]) == (4, len(asked))
    assert list(summary["arms"]) == ["single", "ensemble", "ensemble_masks", "uniform", "rectangle_ensemble", "flip"]
    for arm in summary["arms"].values():
        assert arm["n"] == len(asked) and set(arm["by_kind"]) == {q.kind for s in samples for q in s.questions}
        for name in ("ciou", "giou", "chair_i"):
            low, high = arm[f"{name}_95"]
            assert 0 <= low <= arm[name] <= high <= 1
    assert any(row["arms"]["single"]["predicted"] for row in rows), "no mask was scored at all"


def test_forced_answers_are_the_true_ones(monkeypatch, folders, tmp_path, samples):
    rows, summary = evaluate(monkeypatch, folders, tmp_path, "--answers", "forced")
    assert [row["arms"]["single"]["answer"] for row in rows] == [q.answer for s in samples for q in s.questions]
    assert all(row["arms"]["single"]["predicted"] == row["targets"] for row in rows)
    numbers = summary["arms"]["single"]
    assert numbers["exact"] == numbers["no_target_acc"] == numbers["target_acc"] == 1.0
    assert numbers["chair_i"] == numbers["chair_s"] == 0.0


@pytest.mark.parametrize("known", ["nothing", "a part"])
def test_where_objects_are_not_known_chair_is_left_out(monkeypatch, folders, tmp_path, samples, capsys, known):
    """As in ReasonSeg, which does not say what else is in its pictures, and in MUSE, which says a part of it."""
    if known == "nothing":
        rows, why = [replace(s, objects=()) for s in samples[:2]], "`objects` are not known in this data set"
    else:
        muse = lambda own: tuple(replace(q, id=f"muse/val/{q.id}") for q in own)  # noqa: E731
        rows = [replace(s, questions=muse(s.questions)) for s in samples[:2]]
        why = "`objects` of muse are only what MUSE annotates for its questions, not everything visible"
    write_dataset(rows, tmp_path / "data", "dev")
    model = folders[0], tmp_path / "data"
    scored, summary = evaluate(monkeypatch, model, tmp_path / "out", "--answers", "forced")
    numbers = summary["arms"]["single"]
    assert numbers["chair_i"] is numbers["chair_i_95"] is numbers["chair_s"] is None and numbers["ciou"] > 0
    assert summary["no_chair"] == why and f"CHAIR is left out: {why}" in capsys.readouterr().out
    assert not any(row["arms"]["single"]["named"] for row in scored)


def test_forced_answers_must_fit(monkeypatch, folders, tmp_path, samples, capsys):
    (first, *others) = samples[0].questions
    long = replace(first, answer="A red ball. " * 100 + first.answer)
    write_dataset([replace(samples[0], questions=(long, *others))], tmp_path / "data", "dev")
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, (folders[0], tmp_path / "data"), tmp_path / "out", "--answers", "forced")
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{samples[0].image_id}/{first.id}: " in line and "the context holds 256; 1 questions do not fit" in line


def test_the_same_run_gives_the_same_rows(monkeypatch, folders, tmp_path):
    first, again = (evaluate(monkeypatch, folders, tmp_path / n, "--ensemble", "2") for n in ("a", "b"))
    assert first == again


def test_every_arm_has_a_threshold_of_its_own(monkeypatch, folders, tmp_path, samples):
    """Found on another split: with masks known there, each arm's is the one of the grid that fits them."""
    write_dataset(samples[:2], folders[1], "calibration")
    options = ("--ensemble", "2", "--controls", "--answers", "forced")
    _, plain = evaluate(monkeypatch, folders, tmp_path / "plain", *options)
    assert plain["calibrated_on"] is None and set(plain["thresholds"].values()) == {0.0}

    def known(model, processor, shown, drafts, wanted, choose):
        inside = [t > 0 for t in truth_logits(shown)]
        return {
            "single": arms.Reading(drafts, [torch.where(t, 0.6, 0.4) for t in inside]),
            "flip": arms.Reading(drafts, [torch.where(t, -0.9, -1.1) for t in inside]),
        }

    monkeypatch.setattr(arms, "read_arms", known)
    found = arms.calibrated_thresholds(*load_model(folders[0]), [samples[:1], samples[1:2]], arms.Arms())
    assert found == {"single": 0.5, "flip": -1.0}
    _, calibrated = evaluate(monkeypatch, folders, tmp_path / "found", "--calibration-split", "calibration")
    assert calibrated["thresholds"] == {"single": 0.5, "flip": -1.0} and calibrated["calibrated_on"] == "calibration"


def test_the_scored_split_is_no_calibration_split(monkeypatch, folders, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate(monkeypatch, folders, tmp_path, "--calibration-split", "dev")
    error = capsys.readouterr().err
    assert stop.value.code == 1 and "flatter" in error and error.count("\n") == 1


@pytest.mark.parametrize("file", EVALUATIONS, ids=lambda file: file.stem)
def test_every_shipped_evaluation_is_read(file):
    (read,) = TrlParser([segmentation.SegmentationArguments]).parse_args_and_config(["--config", str(file)])
    run_folder = Path(read.out).parent
    assert read.model == str(run_folder / "final") and read.ensemble == 8
    assert read.out == str(run_folder / f"eval_{Path(read.data).name}") and file.stem.endswith(Path(read.data).name)


def test_an_evaluation_in_a_file_runs_and_the_command_line_wins(monkeypatch, folders, tmp_path):
    options = ("--config", str(EVALUATIONS[0]), "--split", "dev", "--max-rows", "1", "--ensemble", "2")
    _, summary = evaluate(monkeypatch, folders, tmp_path, *options)
    assert summary["pictures"] == 1 and {"single", "ensemble"} == set(summary["arms"])


def test_an_unknown_key_of_an_evaluation_is_named(monkeypatch, folders, tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(EVALUATIONS[0].read_text() + "\nensembel: 8\n")
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, folders, tmp_path, "--config", str(wrong))
    assert "ensembel" in capsys.readouterr().err


def test_max_rows_limits_the_pictures(monkeypatch, folders, tmp_path, samples):
    rows, summary = evaluate(monkeypatch, folders, tmp_path, "--max-rows", "2", "--answers", "forced")
    assert summary["pictures"] == 2 and {row["picture"] for row in rows} == {s.image_id for s in samples[:2]}


def truth_logits(samples):
    """±5 where the truth is, one tensor per question."""
    return [
        torch.from_numpy(10.0 * q.decoded_masks(s.image.height, s.image.width) - 5).float()
        for s in samples
        for q in s.questions
    ]


def scored(monkeypatch, taught, samples, logits):
    monkeypatch.setattr(arms, "restored_masks", lambda model, drafts: logits)
    vocabulary = name_pattern({name for s in samples for name in s.objects})
    rows = segmentation.score(*taught, samples, vocabulary, {"single": 0.0}, arms.Arms(), "forced")
    return rows, segmentation.summarise(rows, "single")


def test_perfect_masks_score_one(monkeypatch, taught, samples):
    _, numbers = scored(monkeypatch, taught, samples, truth_logits(samples))
    assert numbers["ciou"] == numbers["giou"] == 1.0
    assert numbers["ciou_95"] == numbers["giou_95"] == (1.0, 1.0)
    assert all(kind["ciou"] == 1.0 for kind in numbers["by_kind"].values())


def test_one_lost_mask_is_counted_by_hand(monkeypatch, taught, samples):
    """One target of one question is missed altogether: cIoU = 1 − its pixels / all, gIoU = 1 − 1/slots."""
    logits = truth_logits(samples)
    index = next(i for i, own in enumerate(logits) if len(own) == 1)
    lost, pixels = int((logits[index] > 0).sum()), sum(int((own > 0).sum()) for own in logits)
    slots = sum(max(len(own), 1) for own in logits)
    logits[index] = torch.full_like(logits[index], -5.0)
    rows, numbers = scored(monkeypatch, taught, samples, logits)
    assert rows[index]["arms"]["single"]["counts"] == [[0, lost]]
    assert numbers["ciou"] == pytest.approx(1 - lost / pixels)
    assert numbers["giou"] == pytest.approx(1 - 1 / slots)


def test_ignored_pixels_are_not_scored(monkeypatch, taught, samples):
    """The prediction is wrong exactly where the picture is ignored."""
    from dataclasses import replace

    from popen.data.rle import encode

    ignore = np.zeros((96, 96), bool)
    ignore[:, :30] = True
    blind = [replace(s, ignore=encode(ignore)) for s in samples]
    logits = [torch.where(torch.from_numpy(ignore), -own, own) for own in truth_logits(samples)]
    rows, numbers = scored(monkeypatch, taught, blind, logits)
    assert numbers["ciou"] == 1.0
    assert sum(u for row in rows for _, u in row["arms"]["single"]["counts"]) > 0


def test_a_negative_ensemble_is_refused(monkeypatch, folders, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate(monkeypatch, folders, tmp_path, "--ensemble", "-1")
    assert stop.value.code == 1 and "ensemble -1: give K >= 1" in capsys.readouterr().err


def test_the_ensemble_may_answer_otherwise_and_its_control_may_not(monkeypatch, folders, tmp_path):
    """With a margin in its configuration; forced answers stay what they are."""
    model, processor = load_model(folders[0])
    model.config.answer_margin, model.config.ensemble_views = 0.0, 2
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    other = (tmp_path / "model", folders[1])
    rows, _ = evaluate(monkeypatch, other, tmp_path / "free", "--ensemble", "4", "--controls")
    said = {arm: [row["arms"][arm]["answer"] for row in rows] for arm in rows[0]["arms"]}
    assert said["ensemble"] != said["single"]
    assert all(said[arm] == said["single"] for arm in said if arm != "ensemble")
    forced, _ = evaluate(monkeypatch, other, tmp_path / "forced", "--ensemble", "4", "--answers", "forced")
    assert all(row["arms"]["ensemble"]["exact"] for row in forced)


def test_no_pictures_is_an_error_that_says_so(monkeypatch, folders, tmp_path):
    with pytest.raises((ValueError, SystemExit)):
        evaluate(monkeypatch, folders, tmp_path, "--max-rows", "0")
