"""What is wrong with a model folder is said in one line."""

import json
import shutil

import pytest
import torch

from popen.data.safe_io import DataError
from popen.lvlm.loading import load_model
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.tiny import tiny_config


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for part in tiny:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def test_a_whole_folder_loads(good, tiny):
    model, processor = load_model(good)
    state = tiny[0].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert processor.seg_token_ids == tiny[1].seg_token_ids and not model.training


@pytest.mark.parametrize("file", ["config.json", "popen_processor.json"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(DataError, match=f"no {file} in it"):
        load_model(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no \.safetensors weights in it"):
        load_model(folder)


def test_pickled_weights_are_not_read(folder, tiny):
    (folder / "model.safetensors").unlink()
    torch.save(tiny[0].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(
        DataError, match=r"no \.safetensors weights in it; pytorch_model\.bin is pickled, .*convert_weights\.py"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("config", "way_out"),
    [
        (
            {"model_type": "llava", "architectures": ["PixelLMForCausalLM"]},
            r"popen convert-pixellm \S+ours NEW_FOLDER",
        ),
        ({"model_type": "qwen2_5_vl"}, r"python recipes/compose\.py --backbone \S+ours …"),
        ({"model_type": "bert"}, "give one that save_pretrained of popen wrote"),
        ([], "give one that save_pretrained of popen wrote"),
    ],
)
def test_a_checkpoint_of_another_architecture(tmp_path, config, way_out):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    (tmp_path / "ours" / "pytorch_model.bin").write_bytes(b"whatever")
    with pytest.raises(DataError, match=f"not a popen model; .*{way_out}$") as error:
        load_model(tmp_path / "ours")
    assert "\n" not in str(error.value)


def test_a_deeper_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"]["text_config"]["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"missing keys in the weights, first .*layers\.1\..*another configuration"):
        load_model(folder)


def test_deeper_weights(folder, tiny):
    PopenForReasoningSegmentation(tiny_config(tiny[1], width=48, layers=2)).save_pretrained(folder / "other")
    shutil.copy(folder / "other" / "model.safetensors", folder)
    with pytest.raises(DataError, match=r"unexpected keys in the weights, first .*layers\.1\."):
        load_model(folder)


def test_weights_of_another_width(folder):
    config = json.loads((folder / "config.json").read_text())
    config["decoder_mlp_dim"] = 2 * config["decoder_mlp_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="another configuration"):
        load_model(folder)


def test_broken_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="model"):
        load_model(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "runs/a/b"])
def test_a_missing_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such model folder"):
        load_model(name)


def test_a_missing_folder_that_reads_like_a_hub_id(tmp_path, monkeypatch):
    """Nothing here and nothing on the Hub (the tests are offline): the line says both."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="runs/nowhere"):
        load_model("runs/nowhere")
