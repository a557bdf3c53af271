"""Each benchmark's command from start to end with the shipped model, and each one's scores where masks are known."""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from eval import benchmark, grandf, grefcoco, hallucination, muse, pope, reasonseg, report, segmentation
from eval.benchmark import Reply, with_one_mask, with_targets
from eval.benchmark_report import Metric, numbers
from eval.segmentation import SegmentationArguments
from popen.data.safe_io import DataError
from popen.data.schema import FEATURES, write_dataset

MODEL = Path(__file__).parent.parent.parent / "popen" / "assets" / "popen-tiny"
EXTRA = {"refcoco": ["--dataset", "refcoco"], "hallucination": ["--each", "1"]}


def of_source(samples, source):
    """The scenes with ids as a converter gives them: the data set's name stands first."""

    def named(scene):
        return tuple(replace(q, id=f"{source}/val/{scene.image_id}/0/{n}") for n, q in enumerate(scene.questions))

    return [replace(scene, questions=named(scene)) for scene in samples]


@pytest.fixture(scope="module")
def data(tmp_path_factory, samples):
    """Two scenes as split `val` of each benchmark: questions with one target, with several and with none."""
    root = tmp_path_factory.mktemp("benchmark")
    counts = {len(q.masks) for s in samples[:2] for q in s.questions}
    assert {0, 1} < counts
    for source in ("reasonseg", "refcoco", "grefcoco", "muse", "grandf", "hallucination"):
        write_dataset(of_source(samples[:2], source), root / source, "val")
    return root


def evaluate(monkeypatch, name, data, out, *options):
    """Runs `python -m eval.<name>` on `data`, or on its own below `data`, and returns its summary and report."""
    data = data / name if (data / name).is_dir() else data
    argv = ["--model", str(MODEL), "--data", str(data), "--out", str(out), "--max-new-tokens", "40"]
    monkeypatch.setattr(sys, "argv", [name, *argv, *EXTRA.get(name, []), *options])
    importlib.import_module(f"eval.{name}").main()
    return json.loads((out / "summary.json").read_text()), (out / "report.md").read_text()


def rows_of(out, name):
    return [json.loads(line) for line in (out / f"rows_{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["reasonseg", "refcoco", "grefcoco", "muse", "grandf"])
def test_every_question_is_scored_once_in_both_protocols(monkeypatch, data, samples, tmp_path, name):
    summary, page = evaluate(monkeypatch, name, data, tmp_path)
    questions = [q for s in of_source(samples[:2], name) for q in s.questions]
    shown = {"free": questions, "forced": questions if name != "grefcoco" else [q for q in questions if q.masks]}
    assert [(r["protocol"], r["arm"]) for r in summary["results"]] == [("free", "single"), ("forced", "single")]
    for result in summary["results"]:
        rows = rows_of(tmp_path, result["protocol"])
        assert [row["id"] for row in rows] == sorted(q.id for q in shown[result["protocol"]])
        assert result["n"] == len(rows) and set(result["by_kind"]) == {row["kind"] for row in rows}
        assert any(row["arms"]["single"]["predicted"] for row in rows), "no mask was scored at all"
        for metric, value in result.items():
            interval = result.get(f"{metric}_95")
            assert interval is None or 0 <= interval[0] <= value <= interval[1] <= 1 + 1e-9
    assert summary["command"].startswith(f"python -m eval.{name} --model") and summary["thresholds"]
    assert "| free generation |" in page and "| teacher-forced |" in page
    assert ("| LISA-7B |" in page) == (name in ("reasonseg", "refcoco"))
    assert "GSVA-7B (ft)" in page or name in ("muse", "grandf", "reasonseg")
    good = summary["results"][1]["ciou"]
    assert good > 0.5, f"the shipped model knows scenes, and true words were given: cIoU {good}"


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
    """What gRefCOCO and hallucination, which ask the most unlike things, left behind."""
    out = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("grefcoco", "hallucination"):
            evaluate(patch, name, data, out / name)
    return out


def report_of(monkeypatch, *folders):
    monkeypatch.setattr(sys, "argv", ["report", "--benchmarks", *map(str, folders)])
    report.main()


def test_the_report_prints_whole_benchmarks(monkeypatch, evaluated, capsys):
    report_of(monkeypatch, evaluated / "grefcoco", evaluated / "hallucination")
    text = capsys.readouterr().out
    assert "# gRefCOCO, val" in text and "# Hallucination, val" in text and "GSVA-7B (ft)" in text


CHANGES = {
    "missing": (lambda lines: lines[1:], "ids are missing, first '"),
    "doubled": (lambda lines: [*lines, lines[0]], "1 ids stand twice, first '"),
    "strange": (lambda lines: [*lines, json.dumps({"id": "grefcoco/x"})], "1 ids were not asked for, first"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", ["grefcoco/rows_free", "grefcoco/rows_forced", "hallucination/rows_free"])
def test_the_report_refuses_rows_that_are_not_whole(monkeypatch, evaluated, tmp_path, file, change):
    shutil.copytree(evaluated, tmp_path / "copy")
    rows = tmp_path / "copy" / f"{file}.jsonl"
    changed, message = CHANGES[change]
    rows.write_text("\n".join(changed(rows.read_text().splitlines())) + "\n")
    with pytest.raises(DataError, match=rf"^{rows}: [^\n]*{message}"):
        report_of(monkeypatch, rows.parent)


@pytest.mark.parametrize(
    "change, message", [("missing", "3 probes, the summary counts 4"), ("doubled", "stand twice")]
)
def test_the_report_refuses_probes_that_are_not_whole(monkeypatch, evaluated, tmp_path, change, message):
    shutil.copytree(evaluated / "hallucination", tmp_path / "copy")
    rows = tmp_path / "copy" / "rows_pope_popular.jsonl"
    rows.write_text("\n".join(CHANGES[change][0](rows.read_text().splitlines())) + "\n")
    with pytest.raises(DataError, match=rf"^{rows}: [^\n]*{message}"):
        report_of(monkeypatch, rows.parent)


def test_the_report_names_a_folder_of_something_else(monkeypatch, tmp_path):
    (tmp_path / "summary.json").write_text('{"split": "val"}')
    with pytest.raises(DataError, match=r"summary\.json: not of a benchmark, or of an earlier popen; evaluate again$"):
        report_of(monkeypatch, tmp_path)


def test_forced_words_give_no_accuracy_of_denials(monkeypatch, data, tmp_path):
    summary, page = evaluate(monkeypatch, "grefcoco", data, tmp_path, "--answers", "forced")
    (result,) = summary["results"]
    assert result["n_acc"] is None and result["n_acc_95"] is None and "| – |" in page


def test_hallucinations_and_probes(monkeypatch, data, samples, tmp_path):
    summary, page = evaluate(monkeypatch, "hallucination", data, tmp_path)
    (result,) = summary["results"]
    assert result["n"] == sum(len(s.questions) for s in samples[:2]) and 0 <= result["chair_i"] <= 1
    assert set(summary["pope"]) == {"random", "popular", "adversarial"}
    for negatives, own in summary["pope"].items():
        assert own["n"] == len(rows_of(tmp_path, f"pope_{negatives}")) == 2 * 2
        assert f"| {negatives} | {100 * own['accuracy']:.1f} [" in page


def test_pictures_that_cannot_be_probed_are_refused_before_anything_is_asked(monkeypatch, samples, tmp_path):
    write_dataset([replace(own, objects=()) for own in samples[:2]], tmp_path, "val")
    monkeypatch.setattr(hallucination, "answers", lambda *_: pytest.fail("answers were generated first"))
    with pytest.raises(DataError, match=f"^{tmp_path}: `objects` are not known in this data set; measure halluc"):
        evaluate(monkeypatch, "hallucination", tmp_path, tmp_path / "out")


def test_pictures_that_all_show_the_same_cannot_be_probed(monkeypatch, samples, tmp_path):
    write_dataset([replace(own, objects=("ball",)) for own in samples[:2]], tmp_path, "val")
    with pytest.raises(DataError, match=f"^{tmp_path}: no picture has both .* list what is in the pictures"):
        evaluate(monkeypatch, "hallucination", tmp_path, tmp_path / "out")


def captions(samples):
    """Scenes whose questions are of GranD_f's kind, under a name of someone's own."""
    kind = lambda own: tuple(replace(q, kind="caption") for q in own)  # noqa: E731
    return [replace(s, questions=kind(s.questions)) for s in of_source(samples, "my_captions")]


@pytest.mark.parametrize(
    "rows, message",
    [
        (lambda samples: of_source(samples, "muse"), "of muse are only what MUSE annotates for its questions, not"),
        (lambda samples: of_source(samples, "paco_lvis"), "of paco_lvis are only classes of LVIS that a picture was"),
        (captions, "of my_captions are only what its captions name, not everything visible"),
    ],
)
def test_where_objects_are_a_part_nothing_is_called_hallucinated(monkeypatch, samples, tmp_path, rows, message):
    write_dataset(rows(samples[:2]), tmp_path, "val")
    monkeypatch.setattr(hallucination, "answers", lambda *_: pytest.fail("answers were generated first"))
    with pytest.raises(DataError, match=rf"^{tmp_path}: `objects` {message}[^\n]*; measure hallucination on COCO"):
        evaluate(monkeypatch, "hallucination", tmp_path, tmp_path / "out")
    argv = ["pope", "--model", str(MODEL), "--data", str(tmp_path), "--split", "val", "--out", str(tmp_path / "pope")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(DataError, match=rf"^{tmp_path}: `objects` {message}[^\n]*; probe on COCO"):
        pope.main()


def test_part_of_a_split_and_the_ensemble_are_labelled(monkeypatch, data, samples, tmp_path):
    options = ("--max-rows", "1", "--answers", "free", "--ensemble", "2")
    summary, page = evaluate(monkeypatch, "reasonseg", data, tmp_path, *options)
    assert [r["arm"] for r in summary["results"]] == ["single", "ensemble"]
    assert summary["results"][0]["n"] == len(samples[0].questions)
    assert "Only the first 1 of 2 pictures: compares with nothing below." in page


@pytest.mark.parametrize("options", [("--ensemble", "-1"), ("--max-rows", "0")])
def test_options_out_of_range_are_refused(monkeypatch, data, tmp_path, options):
    with pytest.raises(ValueError, match=options[0]):
        evaluate(monkeypatch, "reasonseg", data, tmp_path, *options)


def test_a_picture_that_cannot_be_decoded_ends_the_evaluation(monkeypatch, samples, tmp_path):
    """It is named, and nothing is scored without it."""
    samples = of_source(samples, "reasonseg")
    rows = [samples[0].to_row(), {**samples[1].to_row(), "image": {"bytes": b"no picture", "path": None}}]
    datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(str(tmp_path / "val"))
    with pytest.raises(DataError, match=f"^{samples[1].image_id}: not a picture"):
        evaluate(monkeypatch, "reasonseg", tmp_path, tmp_path / "out", "--split", "val")
    with pytest.raises(DataError, match=f"^{samples[1].image_id}: not a picture"):
        segmentation.main(SegmentationArguments(str(MODEL), str(tmp_path), str(tmp_path / "out"), "val"))
    assert not (tmp_path / "out" / "summary.json").exists()


def test_muse_needs_the_records(monkeypatch, samples, tmp_path):
    """Rows of an earlier converter, which joined the records of a picture, would not score as released."""
    rows = [replace(s, questions=tuple(replace(q, id=f"muse/val/{q.id}") for q in s.questions)) for s in samples[:1]]
    write_dataset(rows, tmp_path, "val")
    with pytest.raises(DataError, match=rf"^question '{rows[0].questions[0].id}' does not say its record; convert"):
        evaluate(monkeypatch, "muse", tmp_path, tmp_path / "out")


NAMES = ["reasonseg", "refcoco", "grefcoco", "muse", "grandf"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_another_data_set_are_refused(monkeypatch, data, samples, tmp_path, name):
    """Their numbers would stand under this benchmark's name and beside its published rows."""
    other = "refcoco" if name == "grefcoco" else "grefcoco"
    monkeypatch.setattr(benchmark, "load_model", lambda *_: pytest.fail("the model was loaded first"))
    message = rf"^{data / other}: question '{other}/val/\S*' is not of {name}, whose ids begin with '{name}/'; "
    with pytest.raises(DataError, match=message + r"[^\n]* eval\.segmentation$"):
        evaluate(monkeypatch, name, data / other, tmp_path)


def test_rows_of_another_way_of_splitting_are_refused(monkeypatch, data, tmp_path):
    with pytest.raises(DataError, match=r"is not of refcoco-google, whose ids begin with 'refcoco-google/'"):
        evaluate(monkeypatch, "refcoco", data, tmp_path, "--split-by", "google")
    with pytest.raises(DataError, match=r"^--split-by umd: refcoco is split by unc or google$"):
        evaluate(monkeypatch, "refcoco", data, tmp_path, "--split-by", "umd")


def test_refcoco_is_not_refcoco_plus(monkeypatch, data, tmp_path):
    with pytest.raises(DataError, match=r"is not of refcoco\+, whose ids begin with 'refcoco\+/'"):
        evaluate(monkeypatch, "refcoco", data, tmp_path, "--dataset", "refcoco+")


@pytest.fixture
def long_answers(samples, tmp_path):
    """MUSE rows of which one true answer, with 34 targets, does not fit popen-tiny's context."""
    rows = of_source(samples[:2], "muse")
    (first, *others) = rows[1].questions
    mask = next(q.masks[0] for q in rows[1].questions if q.masks)
    long = replace(first, answer="A small red cup <seg>, " * 34, phrases=("cup",) * 34, masks=(mask,) * 34)
    write_dataset([rows[0], replace(rows[1], questions=(long, *others))], tmp_path / "data", "val")
    return rows[1].image_id, long.id


def test_an_answer_that_does_not_fit_is_named_before_anything_is_generated(monkeypatch, long_answers, tmp_path):
    monkeypatch.setattr(benchmark, "generate_drafts", lambda *_: pytest.fail("answers were generated first"))
    picture, question = long_answers
    message = rf"^{picture}/{question}: \d+ tokens with picture and answer \(34 targets\), the context holds 256; .*"
    with pytest.raises(DataError, match=message + r"max_length in the model's popen_processor\.json"):
        evaluate(monkeypatch, "muse", tmp_path / "data", tmp_path / "out")


def test_in_free_generation_the_true_answer_need_not_fit(monkeypatch, long_answers, tmp_path):
    summary, _ = evaluate(monkeypatch, "muse", tmp_path / "data", tmp_path / "out", "--answers", "free")
    assert long_answers[1] in {row["id"] for row in rows_of(tmp_path / "out", "free")}
    assert summary["results"][0]["n"] == len(rows_of(tmp_path / "out", "free"))


@pytest.mark.parametrize("name", ["muse", "reasonseg"])
def test_what_is_answered_is_written_before_the_next_protocol(monkeypatch, data, tmp_path, name):
    def broken(*_):
        raise OSError("no device left")

    evaluate(monkeypatch, name, data, tmp_path, "--max-rows", "1")
    monkeypatch.setattr(benchmark, "forced_drafts", broken)
    with pytest.raises(OSError, match="no device"):
        evaluate(monkeypatch, name, data, tmp_path)
    assert len({row["picture"] for row in rows_of(tmp_path, "free")}) == 2
    assert not (tmp_path / "summary.json").exists(), "the summary of an earlier run stands beside these rows"


def test_probes_that_fail_cost_no_answers(monkeypatch, data, samples, tmp_path):
    def broken(*_):
        raise OSError("no device left")

    monkeypatch.setattr(hallucination, "ask", broken)
    with pytest.raises(OSError, match="no device"):
        evaluate(monkeypatch, "hallucination", data, tmp_path)
    assert len(rows_of(tmp_path, "free")) == sum(len(s.questions) for s in samples[:2])


def test_each_data_set_split_and_model_has_a_folder_of_its_own(monkeypatch):
    def folder(name, *options):
        argv = ["--model", "runs/tuned", "--data", "runs/refcoco+/", "--split", "testA", *options]
        monkeypatch.setattr(sys, "argv", [name, *argv])
        return benchmark.parsed(benchmark.parser(name, "x")).out

    assert folder("refcoco") == Path("runs/eval/refcoco/refcoco+/testA/tuned")
    assert folder("refcoco", "--data", "runs/refcoco") == Path("runs/eval/refcoco/refcoco/testA/tuned")
    assert folder("refcoco", "--split", "testB") == Path("runs/eval/refcoco/refcoco+/testB/tuned")
    assert folder("muse", "--model", "org/popen-7b") == Path("runs/eval/muse/refcoco+/testA/popen-7b")
    assert folder("muse", "--out", "here") == Path("here")


def test_results_of_something_else_are_not_replaced(monkeypatch, data, tmp_path):
    evaluate(monkeypatch, "reasonseg", data, tmp_path, "--max-rows", "1", "--answers", "forced")
    before = (tmp_path / "summary.json").read_text()
    monkeypatch.setattr(benchmark, "load_model", lambda *_: pytest.fail("the model was loaded first"))
    with pytest.raises(DataError, match=f"^{tmp_path}: holds results of benchmark reasonseg, not muse; give another"):
        evaluate(monkeypatch, "muse", data, tmp_path)
    with pytest.raises(DataError, match="holds results of split val, not test; give another --out or move them away"):
        evaluate(monkeypatch, "reasonseg", data, tmp_path, "--split", "test")
    assert (tmp_path / "summary.json").read_text() == before


def truth_reply(sample, question, size=4.0):
    """The true masks as logits."""
    height, width = sample.image.size[::-1]
    masks = torch.from_numpy(question.decoded_masks(height, width))
    return Reply(question.answer, question.phrases, torch.where(masks, size, -size).reshape(-1, height, width))


@pytest.mark.parametrize("scored", [reasonseg, grefcoco, muse, grandf], ids=lambda module: module.__name__)
def test_perfect_masks_score_one(samples, scored):
    rows = []
    for sample in of_source(samples, "muse"):
        for q in sample.questions:
            row = {"id": q.id, "picture": sample.image_id, "targets": len(q.masks)}
            row |= {"predicted": len(q.masks)} | scored.score(sample, q, truth_reply(sample, q))
            rows.append(json.loads(json.dumps(row)))
    for name, value in numbers(rows, scored.METRICS).items():
        if name != "n":
            assert value == pytest.approx((1, 1) if name.endswith("_95") else 1, abs=1e-4), name


def test_all_masks_of_an_answer_are_held_against_the_truth_together(samples):
    """Halves of the one target, as two masks, are the target."""
    sample, question = next((s, q) for s in samples for q in s.questions if len(q.masks) == 1)
    whole = truth_reply(sample, question).logits[0]
    upper = whole.clone()
    upper[len(upper) // 2 :] = -4.0
    lower = whole.clone()
    lower[: len(lower) // 2] = -4.0
    intersection, union = reasonseg.score(sample, question, Reply("", (), torch.stack([upper, lower])))["counts"]
    assert intersection == union > 0


def test_strict_numbers_ask_for_as_many_masks_as_there_are():
    """IoUs ½, 1 and 1; the second in two masks for one target, the third silence about nothing."""
    rows = [
        {"counts": [10, 20], "predicted": 1, "targets": 1}, {"counts": [30, 30], "predicted": 2, "targets": 1},
        {"counts": [0, 0], "predicted": 0, "targets": 0},
    ]  # fmt: skip
    found = {name: metric.statistic(rows) for name, metric in reasonseg.METRICS.items()}
    expected = {"giou": 2.5 / 3, "ciou": 40 / 50, "giou_strict": 1.5 / 3, "ciou_strict": 10 / 50}
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_text_gate_that_is_gone_costs_no_answers(monkeypatch, data, tmp_path, chat_server):
    """MUSE's answers take hours, and an endpoint may refuse after them: what they scored without it is written."""
    chat_server.replies = [(401, "who are you?")]
    url = f"http://127.0.0.1:{chat_server.server_port}/v1"
    gate = ["--gate-url", url, "--gate-model", "small", "--gate-least", "5", "--answers", "forced"]
    with pytest.raises(DataError, match="401"):
        evaluate(monkeypatch, "muse", data, tmp_path, *gate)
    rows, summary = rows_of(tmp_path, "forced"), json.loads((tmp_path / "summary.json").read_text())
    assert len(rows) == summary["results"][0]["n"] > 0 and "gate_unreadable" not in summary


def test_an_invention_is_a_slot_in_grandf(samples):
    sample, question = next((s, q) for s in samples for q in s.questions if len(q.masks) == 1)
    logits = truth_reply(sample, question).logits
    row = grandf.score(sample, question, Reply("", (), torch.cat([logits, -logits])))
    row |= {"targets": 1, "predicted": 2}
    assert row["found"] == 1 and len(row["counts"]) == 2
    assert grandf.share_found([row], "targets") == 1 and grandf.share_found([row], "predicted") == 0.5


def test_what_is_forced():
    assert with_one_mask("The dog <seg>.") == with_targets("The dog <seg>.") == "The dog <seg>."
    assert with_one_mask("There is no dog.") == "<seg>" and with_targets("There is no dog.") is None


def test_numbers_are_about_their_rows_and_pictures_are_resampled():
    rows = [{"picture": "a", "x": 0.0}, {"picture": "b", "x": 1.0}]
    mean = lambda own: float(np.mean([row["x"] for row in own]))  # noqa: E731
    some = {"mean": Metric("m", mean), "high": Metric("h", mean, lambda row: row["x"] > 0.5, interval=False)}
    assert numbers(rows, some) == {"n": 2, "mean": 0.5, "mean_95": (0.0, 1.0), "high": 1.0}
    assert numbers(rows[:1], some) == {"n": 1, "mean": 0.0, "mean_95": (0.0, 0.0), "high": None}
