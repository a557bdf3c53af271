"""A study in small: every arm trains, what is done is not done again, and the tables are what the rows say."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import ablation, ablation_tables, ablation_training
from eval.ablation_arms import ARMS
from popen.data.safe_io import DataError
from popen.data.schema import write_dataset
from popen.lvlm.loading import load_model
from popen.lvlm.mining import load_mined
from popen.preference.reference import model_fingerprint
from tests.mined import mined_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory, taught, samples):
    """A model folder, its preferences, and data with the splits train, calibration, dev and test."""
    folder = tmp_path_factory.mktemp("study")
    mined_folder(folder, *taught, samples)
    for split in ("calibration", "dev", "test"):
        renamed = [replace(s, image_id=f"{split}-{i}") for i, s in enumerate(samples[:2])]
        write_dataset(renamed, folder / "data", split)
    return folder


def trained(root, out, name):
    """The weights, and the log, of an arm after two steps of each round."""
    ablation_training.train_arm(
        ARMS[name], str(root / "model"), str(root / "mined"), str(root / "data"), "all", 4, out / name,
        2 * ARMS[name].rounds, 0,
        learning_rate=1e-3, per_device_train_batch_size=2, logging_steps=1,
    )  # fmt: skip
    log = json.loads((out / name / "trainer_state.json").read_text())["log_history"]
    model = load_model(out / name)[0]
    return torch.cat([p.detach().flatten() for p in model.parameters()]), [e for e in log if "text/loss" in e]


@pytest.fixture(scope="module")
def control(root, tmp_path_factory):
    return trained(root, tmp_path_factory.mktemp("control"), "continued_sft")[0]


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains(root, control, tmp_path, name):
    """Finite losses, a log line for each, and other weights than the control's."""
    weights, log = trained(root, tmp_path, name)
    assert len(log) == 2 and all(np.isfinite(entry["loss"]) for entry in log)
    assert torch.equal(control, weights) == (name == "continued_sft")


def test_a_second_round_mines_the_model_of_the_first(root, tmp_path):
    trained(root, tmp_path, "popen_refreshed")
    report = load_mined(tmp_path / "popen_refreshed" / "mined0")[2]
    assert report["model"] == model_fingerprint(tmp_path / "popen_refreshed" / "round0")
    assert (
        report["settings"]["seed"] == 1 and report["settings"]["embedding_noise"] == 1.0 and report["rows"] == [0, 4]
    )


def test_gaps_by_hand():
    """Superior 0.9; inferior 0.1 and 0.5; one medium, 0.6."""
    targets = [
        {"ious": [0.5, 0.9, 0.6, 0.1], "superior": 1, "medium": 2, "inferior": 3},
        {"ious": [0.9, 0.5], "superior": 0, "medium": -1, "inferior": 1},
    ]
    gaps = ablation_training.seg_gaps([targets[:1], targets[1:]])
    np.testing.assert_allclose(gaps[1], [0.8, 0.4])
    np.testing.assert_allclose(gaps[2], [0.3])
    first, second = ablation_training.from_clear_to_close(None, gaps, 0.5)
    assert first.keywords["least"] == pytest.approx(0.6) and first.keywords["most"] == np.inf
    assert second.keywords["least"] == 0 and second.keywords["most"] == pytest.approx(0.3)


def study(root, out, **options):
    settings = {
        "arms": ["continued_sft", "text_sigmoid"], "seeds": [0, 1], "learning_rates": [1e-5, 1e-3], "max_steps": 1,
        "batch_size": 2, "test_split": "test", "tuning_rows": 1,
    }  # fmt: skip
    return ablation.AblationArguments(
        model_name_or_path=str(root / "model"), preferences=str(root / "mined"), dataset=str(root / "data"),
        scored=str(root / "data"), output_dir=str(out), text_pairs="all", **(settings | options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("done")
    ablation.main(study(root, out))
    return out


def test_every_rate_is_tuned_and_every_seed_is_tested(done, samples):
    for arm in ("continued_sft", "text_sigmoid"):
        assert {f.parent.parent.name for f in done.glob(f"{arm}/*/0/dev.jsonl")} == {"1e-05", "0.001"}
        tested = sorted(done.glob(f"{arm}/*/*/test.jsonl"))
        assert len({f.parent.parent for f in tested}) == 1 and {f.parent.name for f in tested} == {"0", "1"}
    tuned = [json.loads(line) for line in (tested[0].parent / "dev.jsonl").read_text().splitlines()]
    assert len({row["picture"] for row in tuned}) == 1  # tuning_rows
    rows = [json.loads(line) for line in tested[0].read_text().splitlines()]
    assert [row["id"] for row in rows] == [q.id for s in samples[:2] for q in s.questions]
    assert {row["arm"] for row in rows} == {"text_sigmoid"} and {"counts", "exact", "named"} <= rows[0].keys()


def test_a_study_that_is_done_is_not_done_again(root, done, monkeypatch):
    before = {file: file.read_bytes() for file in done.rglob("*.jsonl")}
    monkeypatch.setattr(ablation, "train_arm", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(ablation, "evaluate", lambda *_: pytest.fail("scored again"))
    ablation.main(study(root, done))
    assert {file: file.read_bytes() for file in done.rglob("*.jsonl")} == before


def test_unknown_arms_and_empty_grids_are_refused(root, tmp_path):
    with pytest.raises(DataError, match="text_sigmoyd is not one of"):
        study(root, tmp_path, arms=["text_sigmoyd"])
    with pytest.raises(DataError, match="at least one"):
        study(root, tmp_path, learning_rates=[])


def rows_of(*pictures, **fixed):
    """One question per picture with (intersection, union, hallucinated, named)."""
    return [
        {
            "id": f"q{i}", "picture": f"p{i}", "kind": "relation" if i else "none", "targets": i, "predicted": i,
            "counts": [[a, b]], "hallucinated": h, "named": n, "exact": True,
        } | fixed
        for i, (a, b, h, n) in enumerate(pictures)
    ]  # fmt: skip


def write(folder, arm, rate, seed, rows):
    file = folder / arm / f"{rate:g}" / str(seed) / "test.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_tables_by_hand(tmp_path):
    """Two seeds of two pictures: control (0 + 50)/(10 + 100) twice; the arm gains 20 pixels in one seed, 40 in one."""
    for seed, gain in ((0, 20), (1, 40)):
        write(tmp_path, "continued_sft", 1e-5, seed, rows_of((0, 10, 0, 0), (50, 100, 1, 4)))
        write(tmp_path, "arm", 1e-4, seed, rows_of((0, 10, 0, 0), (50 + gain, 100, 0, 4)))
    table = ablation_tables.tabulate(tmp_path, "test", "continued_sft")
    assert list(table) == ["continued_sft", "arm"]
    own, control = table["arm"], table["continued_sft"]
    assert control["ciou"]["value"] == pytest.approx(50 / 110) and control["ciou"]["difference"] == 0
    assert own["ciou"]["difference"] == pytest.approx(30 / 110)
    assert own["hard_ciou"]["value"] == pytest.approx(0.8) and control["chair_i"]["value"] == pytest.approx(0.25)
    assert own["chair_i"]["difference"] == pytest.approx(-0.25)
    assert own["no_target_acc"]["value"] == own["exact"]["value"] == 1
    low, high = own["ciou"]["difference_95"]
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(0.4)  # only p0; only p1 in the better seed
    assert (own["learning_rate"], own["seeds"], own["n"]) == (1e-4, 2, 2)
    assert "| arm | 0.0001 | 2 |" in ablation_tables.markdown(table)


def test_of_several_rates_the_best_is_shown(tmp_path):
    write(tmp_path, "arm", 1e-5, 0, rows_of((5, 10, 0, 1)))
    write(tmp_path, "arm", 1e-4, 0, rows_of((6, 10, 0, 1)))
    lines = [{"loss": 1.0}, *({"text/loss": 0.5, "seg/margins": str(value)} for value in (9, 1, 2, 3, 4, 5))]
    (tmp_path / "arm" / "0.0001" / "0" / "trainer_state.json").write_text(json.dumps({"log_history": lines}))
    scores, trained = ablation_tables.read_arm(tmp_path / "arm", "test")
    assert {name: trained.pop(name) for name in ablation_tables.LEARNT} == {
        "rewards/accuracies": None, "rewards/margins": None, "seg/accuracies": None, "seg/margins": 3.0,
    }  # fmt: skip
    assert trained == {"learning_rate": 1e-4, "rates": 2, "seeds": 1, "n": 1}
    assert ablation_tables.ratio(scores, "ciou") == 0.6


def test_what_cannot_be_compared_is_refused(tmp_path):
    write(tmp_path, "arm", 1e-5, 0, rows_of((5, 10, 0, 1)))
    with pytest.raises(DataError, match="the control sft was not scored"):
        ablation_tables.tabulate(tmp_path, "test", "sft")
    write(tmp_path, "sft", 1e-5, 0, rows_of((5, 10, 0, 1), (5, 10, 0, 1)))
    with pytest.raises(DataError, match="differ in seeds or pictures"):
        ablation_tables.tabulate(tmp_path, "test", "sft")
    write(tmp_path, "sft", 1e-5, 1, rows_of((5, 10, 0, 1)))
    with pytest.raises(DataError, match="other pictures"):
        ablation_tables.tabulate(tmp_path, "test", "sft")
    with pytest.raises(DataError, match=r"no test\.jsonl"):
        ablation_tables.read_arm(tmp_path / "nobody", "test")


def test_the_tables_are_printed_and_written(done, tmp_path, monkeypatch, capsys):
    argv = ["eval.ablation_tables", "--study", str(done), "--out", str(tmp_path / "table")]
    monkeypatch.setattr(sys, "argv", argv)
    ablation_tables.main()
    assert set(json.loads((tmp_path / "table.json").read_text())) == {"continued_sft", "text_sigmoid"}
    assert (tmp_path / "table.svg").read_text().count("<circle") == 1
    assert "| continued_sft |" in capsys.readouterr().out
