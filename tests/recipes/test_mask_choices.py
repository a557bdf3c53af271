"""Every loss on masks and every kind of mask preference trains popen-tiny's small sister through the recipes."""

import inspect
import json
import sys
import typing

import pytest
import torch
from safetensors.torch import load_file

from popen.training.mask_loss import MaskLossArguments
from tests.mined import mined_folder
from tests.recipes.test_recipes_run import recipe

QUIET = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]
EAGER = ["--attn_implementation", "eager"]  # which the looking loss reads
MASK_LOSSES = typing.get_args(MaskLossArguments.__annotations__["mask_loss"])
PREFERENCES = {  # every margin and every loss on it once, one of them by a YAML
    "sum": ["--seg_margin", "sum", "--seg_loss", "ipo"],
    "image_mean": ["--seg_margin", "image_mean", "--seg_loss", "cdpo", "--seg_label_smoothing", "0.2"],
    "power": "seg_margin: power\nseg_alpha: 0.3\nseg_loss: rdpo\nseg_label_smoothing: 0.1\n",
    "region_mean": [],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, taught, samples):
    """A folder with a model, scenes and what was mined of them."""
    root = tmp_path_factory.mktemp("choices")
    mined_folder(root, *taught, samples)
    return root


def start(monkeypatch, root, out, name, *options):
    """Runs a recipe on the folder as from a command line, for two steps; what it logged."""
    module = recipe(name)
    given = ["--model_name_or_path", root / "model", "--dataset", root / "data", "--output_dir", out, "--max_steps", 2]
    argv = [*given, "--per_device_train_batch_size", 2, "--logging_steps", 1, *QUIET, *options]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
    module.run(module.main, *(p.annotation for p in inspect.signature(module.main).parameters.values()))
    before, after = (load_file(folder / "model.safetensors") for folder in (root / "model", out))
    assert any(not torch.equal(before[key], after[key]) for key in before if "mask_decoder" in key)
    logs = [entry for entry in json.loads((out / "trainer_state.json").read_text())["log_history"] if "loss" in entry]
    assert len(logs) == 2
    return logs


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_every_loss_on_masks_trains(monkeypatch, tmp_path, root, name):
    logs = start(monkeypatch, root, tmp_path / "out", "sft", "--mask_loss", name, "--band", 2, *EAGER)
    parts = {key for entry in logs for key in entry if key.startswith("mask/")}
    expected = {"interior", "boundary", "dice"} if name in ("pareto", "epsilon_constraint") else {"ce", "dice"}
    assert parts == (set() if name == "bce_dice" else {f"mask/{part}" for part in expected})
    assert all(torch.tensor([entry["loss"], entry["seg/bce"]]).isfinite().all() for entry in logs)


@pytest.mark.parametrize("name", PREFERENCES)
def test_every_margin_and_loss_on_it_trains(monkeypatch, tmp_path, root, name):
    options = PREFERENCES[name]
    if isinstance(options, str):
        (tmp_path / "own.yaml").write_text(options)
        options = ["--config", tmp_path / "own.yaml"]
    logs = start(monkeypatch, root, tmp_path / "out", "preference", "--preferences", root / "mined", *options)
    first = logs[0]["seg/loss"]  # at a margin of 0
    assert first == pytest.approx({"sum": 0.25, "region_mean": 0.6931}.get(name, first), abs=1e-3)
    assert logs[1]["seg/margins"] != 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sft", ["--mask_loss", "hinge"], "invalid choice: 'hinge'"),
        ("sft", ["--mask_loss", "fuzzy", "--band", "1"], "band = 1.0: narrower than 1.5 pixels"),
        ("align", ["--mask_loss", "fuzzy"], "--mask_loss"),
        ("preference", ["--preferences", "p", "--seg_margin", "class_mean"], "invalid choice: 'class_mean'"),
        ("preference", ["--preferences", "p", "--seg_loss", "rdpo", "--seg_label_smoothing", "0.5"],
         "seg_label_smoothing must be in [0, 0.5), got 0.5"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_read(monkeypatch, capsys, tmp_path, name, options, message):
    module = recipe(name)
    argv = ["--model_name_or_path", "none", "--dataset", "none", "--output_dir", tmp_path, *QUIET, *options]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        module.run(module.main, *(p.annotation for p in inspect.signature(module.main).parameters.values()))
    assert stop.value.code and message in capsys.readouterr().err
