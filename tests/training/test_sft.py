"""The supervised trainer on twelve scenes: it learns, repeats itself, and gets over a crash, a NaN and a full disk."""

import copy
import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback, set_seed

from popen.data.safe_io import DataError, StorageError
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from popen.lvlm.loading import load_model
from popen.training import SegmentationSFTTrainer, SFTArguments
from popen.training.callbacks import newest_checkpoint, resume_path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_dataset((sample(seed) for seed in range(12)), tmp_path_factory.mktemp("sft") / "data", "train")


@pytest.fixture
def fresh(tiny):
    """Builds a trainer on an own copy of the untrained model."""

    def build(rows, output_dir, callbacks=(), **options):
        defaults = {
            "max_steps": 8, "save_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 3e-3, "seed": 0,
            "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        }  # fmt: skip
        args = SFTArguments(output_dir=str(output_dir), **(defaults | options))
        set_seed(args.seed)
        model = copy.deepcopy(tiny[0]).train()
        return SegmentationSFTTrainer(model, args, train_dataset=rows, processor=tiny[1], callbacks=list(callbacks))

    return build


class At(TrainerCallback):
    """Does something once a step has ended, after what was saved in it."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.action(model)


class KilledError(Exception):
    pass


def kill(model):
    raise KilledError


def weights(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_the_loss_falls_and_its_parts_are_logged(fresh, rows, tmp_path):
    trainer = fresh(rows, tmp_path, max_steps=16, save_strategy="no", per_device_train_batch_size=4)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 16
    assert sum(e["loss"] for e in logs[-4:]) < 0.8 * sum(e["loss"] for e in logs[:4])
    for entry in logs:
        assert {"text/ce", "seg/bce", "seg/dice", "seg/quality"} <= entry.keys()


def test_the_loss_is_the_weighted_sum_of_its_parts(fresh, rows, tmp_path):
    trainer = fresh(rows, tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    entry, config = trainer.state.log_history[0], trainer.model.config
    names = {
        "ce": "text/ce",
        "bce": "seg/bce",
        "dice": "seg/dice",
        "quality": "seg/quality",
        "look": "seg/look",
        "name": "text/name",
    }
    parts = sum(getattr(config, f"{n}_weight", 0) * entry[k] for n, k in names.items() if k in entry)
    assert entry["loss"] == pytest.approx(parts, rel=1e-3)


def test_accumulated_batches_are_one_batch(fresh, rows, tmp_path):
    """Scenes have one to six questions: a mean of batches' means would weigh the targets of a small batch more."""
    logs = []
    for rows_at_once, accumulated in ((4, 1), (1, 4)):
        trainer = fresh(
            rows, tmp_path, max_steps=3, save_strategy="no", per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=accumulated,
        )  # fmt: skip
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for whole, parts in zip(*logs, strict=True):
        for part in ("loss", "grad_norm", "text/ce", "seg/bce", "seg/dice"):
            assert parts[part] == pytest.approx(whole[part], abs=1e-3), part


def test_the_same_seed_gives_the_same_bytes(fresh, rows, tmp_path):
    trained = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer = fresh(rows, tmp_path / name, max_steps=3, save_strategy="no", seed=seed)
        trainer.train()
        trained.append(weights(trainer.model))
    assert trained[0] == trained[1] != trained[2]


def test_a_killed_run_resumes_to_the_same_bytes(fresh, rows, tmp_path):
    """Eight steps of six an epoch: killed in step 5 after the checkpoint of step 3, resumed, over the epoch's end."""
    whole = fresh(rows, tmp_path / "whole")
    whole.train()
    out = tmp_path / "killed"
    with pytest.raises(KilledError):
        fresh(rows, out, [At(5, kill)]).train()
    newest = newest_checkpoint(out)
    assert newest == str(out / "checkpoint-3")
    resumed = fresh(rows, out, resume_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=resume_path(resumed.args))
    assert resumed.state.global_step == 8
    assert weights(resumed.model) == weights(whole.model)
    assert [e["loss"] for e in resumed.state.log_history if "loss" in e] == [
        e["loss"] for e in whole.state.log_history if "loss" in e
    ]


def test_a_stopped_run_with_muon_resumes_to_the_same_bytes(fresh, rows, tmp_path):
    whole = fresh(rows, tmp_path / "whole", max_steps=4, save_steps=2, muon_learning_rate=0.02)
    whole.train()
    out = tmp_path / "killed"
    with pytest.raises(KilledError):
        fresh(rows, out, [At(3, kill)], max_steps=4, save_steps=2, muon_learning_rate=0.02).train()
    resumed = fresh(rows, out, max_steps=4, save_steps=2, muon_learning_rate=0.02)
    resumed.train(resume_from_checkpoint=newest_checkpoint(out))
    assert weights(resumed.model) == weights(whole.model)
    plain = fresh(rows, tmp_path / "plain", max_steps=4, save_strategy="no")
    plain.train()
    assert weights(plain.model) != weights(whole.model)


def test_a_checkpoint_is_a_whole_model(fresh, rows, tmp_path):
    fresh(rows, tmp_path, max_steps=1, save_steps=1).train()
    model, processor = load_model(tmp_path / "checkpoint-1")
    answer = model.eval().segment([sample(0).image], ["Where is the red ball?"], processor, max_new_tokens=4)
    assert len(answer) == 1


# ---- which checkpoint is the newest


def checkpoint(folder, step, whole=True):
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "trainer_state.json").write_text("{}")
    if whole:
        (made / "popen_processor.json").write_text("{}")
    return made


def test_a_half_written_checkpoint_is_skipped(tmp_path):
    checkpoint(tmp_path, 90)
    whole = checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 110, whole=False)
    assert newest_checkpoint(tmp_path) == str(whole)


def test_nothing_to_resume(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "not there yet") is None
    half = checkpoint(tmp_path, 5, whole=False)
    with pytest.raises(DataError, match=half.name):
        newest_checkpoint(tmp_path)


def test_a_folder_with_a_checkpoints_name_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    whole = checkpoint(tmp_path, 5)
    assert newest_checkpoint(tmp_path) == str(whole)


@pytest.mark.parametrize(
    "wanted, expected", [(True, 5), ("true", 5), ("True", 5), (None, None), ("some/checkpoint-1", "some/checkpoint-1")]
)
def test_what_resume_from_checkpoint_means(tmp_path, wanted, expected):
    newest = str(checkpoint(tmp_path, 5))
    args = SFTArguments(output_dir=str(tmp_path), resume_from_checkpoint=wanted, use_cpu=True, report_to="none")
    assert resume_path(args) == (newest if expected == 5 else expected)


# ---- what must stop a run


def test_lasting_nans_stop_the_run_and_name_the_step(fresh, rows, tmp_path):
    def spoil(model):
        with torch.no_grad():
            next(model.codebook.parameters()).fill_(float("nan"))

    trainer = fresh(rows, tmp_path, [At(4, spoil)])
    with pytest.raises(FloatingPointError, match=r"step 6: the loss on rank 0 ") as stop:
        trainer.train()
    assert "\n" not in str(stop.value) and "learning_rate" in str(stop.value)
    model, _ = load_model(tmp_path / "checkpoint-3")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_full_disk_stops_the_run_and_spares_what_is_there(fresh, rows, tmp_path, monkeypatch):
    def fill(model):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9 - 5, free=5))

    trainer = fresh(rows, tmp_path, [At(4, fill)])
    with pytest.raises(StorageError) as stop:
        trainer.train()
    assert str(tmp_path) in str(stop.value) and "\n" not in str(stop.value)
    assert [folder.name for folder in Path(tmp_path).glob("checkpoint-*")] == ["checkpoint-3"]
    load_model(tmp_path / "checkpoint-3")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
