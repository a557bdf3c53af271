"""Folders with pickled weights become folders that load; the command that errors name does it."""

import json
import re

import pytest
import torch

from popen.data.safe_io import DataError
from popen.lvlm.composing import load_backbone
from popen.lvlm.loading import load_model
from popen.lvlm.pickled_weights import convert_weights
from tests.launching import ROOT, launch_forked
from tests.lvlm.families.tiny_backbones import tiny_backbone


def pickled(folder, parts, *contents):
    """The folder's safetensors replaced by `parts`, pickled."""
    (folder / "model.safetensors").unlink()
    for name, state in zip(parts, contents, strict=True):
        torch.save(state, folder / name)
    torch.save({"lr": 1.0}, folder / "training_args.bin")
    return folder


@pytest.fixture
def model_folder(tiny, tmp_path):
    for part in tiny:
        part.save_pretrained(tmp_path / "old")
    return tmp_path / "old"


def test_the_command_in_the_error_makes_a_popen_model_load(tiny, model_folder):
    pickled(model_folder, ["pytorch_model.bin"], tiny[0].state_dict())
    with pytest.raises(DataError) as refusal:
        load_model(model_folder)
    command = re.search(r"convert them: python (.*)", str(refusal.value))[1]
    new = model_folder.parent / "new"
    command = command.replace("NEW_FOLDER", str(new)).split()
    done = launch_forked(command, ROOT)
    assert done.returncode == 0 and done.stdout == f"{new}: model.safetensors\n", done.stderr
    loaded, _ = load_model(new)
    for name, weight in tiny[0].state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name


def test_a_backbone_in_two_parts(samples, tmp_path):
    _, backbone, processor = tiny_backbone(
        "llava", [t for s in samples for q in s.questions for t in (q.question, q.answer)]
    )
    folder = tmp_path / "old"
    backbone.save_pretrained(folder)
    processor.save_pretrained(folder)
    names = sorted(backbone.state_dict())
    halves = [{n: backbone.state_dict()[n] for n in own} for own in (names[::2], names[1::2])]
    pickled(folder, [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)], *halves)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(DataError, match=r"pytorch_model-00001-of-00002\.bin is pickled, .*convert_weights\.py"):
        load_backbone(str(folder), torch.float32)
    written = convert_weights(folder, tmp_path / "new")
    assert written == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())["weight_map"]
    assert places == {name: written[place % 2] for place, name in enumerate(names)}
    loaded, _ = load_backbone(str(tmp_path / "new"), torch.float32)
    for name, weight in backbone.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert not list((tmp_path / "new").glob("*.bin*"))


@pytest.mark.parametrize(
    ("parts", "contents", "says"),
    [
        ([], [], r"old: no pickled weights \(\.bin, .*\) in it; there is nothing to convert"),
        (["a.pt", "b.pt"], [{}, {}], r"old: a\.pt and b\.pt are not parts of one model; remove one"),
        (["pytorch_model.bin"], [{"step": 3}], r"pytorch_model\.bin: 'step' is no tensor"),
        (
            ["pytorch_model-1.bin", "pytorch_model-2.bin"],
            [{"w": torch.ones(1)}, {"w": torch.ones(1)}],
            r"pytorch_model-2\.bin: w is in another file, too; fetch the model again",
        ),
    ],
    ids=["none", "two models", "no tensor", "twice"],
)
def test_what_cannot_be_converted(model_folder, tmp_path, parts, contents, says):
    pickled(model_folder, parts, *contents)
    with pytest.raises(DataError, match=says):
        convert_weights(model_folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_only_a_model_and_only_to_a_new_folder(tiny, model_folder, tmp_path):
    pickled(model_folder, ["pytorch_model.bin"], tiny[0].state_dict())
    with pytest.raises(DataError, match=r"old: already there; give a new folder"):
        convert_weights(model_folder, model_folder)
    with pytest.raises(DataError, match=r"nowhere: no config\.json in it; give the folder of a model"):
        convert_weights(tmp_path / "nowhere", tmp_path / "new")
