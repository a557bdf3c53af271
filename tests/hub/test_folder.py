"""Four kinds of folders are told apart, and everything else is refused by name."""

import json

import pytest

from popen.data.safe_io import DataError
from popen.hub.folder import recognise


def write(folder, **files):
    """Files by name, `__` for a slash; texts as they are, everything else as JSON."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_model(model_folder):
    shared = recognise(model_folder)
    assert (shared.kind, shared.repo_type, shared.left_out) == ("model", "model", ())
    assert {
        "config.json",
        "model.safetensors",
        "popen_processor.json",
        "tokenizer.json",
        "chat_template.jinja",
    } <= set(shared.files)


def test_what_a_training_leaves_beside_a_model_stays_at_home(copy, model_folder):
    folder = copy(model_folder)
    write(folder, trainer_state_DOT_json={"best": "/somewhere"}, notes_DOT_txt="mine", checkpoint__config_DOT_json={})
    write(folder, script_DOT_py="print()", _DOT_cache__secret_DOT_json={})
    assert recognise(folder).left_out == ("checkpoint/config.json", "notes.txt", "script.py", "trainer_state.json")
    assert recognise(folder).files == recognise(model_folder).files


def test_an_adapter(tmp_path):
    write(tmp_path, adapter_config_DOT_json={}, adapter_model_DOT_safetensors="weights")
    shared = recognise(tmp_path)
    assert (shared.kind, shared.repo_type) == ("adapter", "model")
    assert shared.files == ("adapter_config.json", "adapter_model.safetensors")


def test_a_preference_set(mined_folder):
    shared = recognise(mined_folder)
    assert (shared.kind, shared.repo_type) == ("preferences", "dataset")
    assert {name.split("/")[0] for name in shared.files} == {"mining.json", "text", "seg"}
    assert {name.split("/")[0] for name in shared.left_out} == {"claim.json", "shards"}


def test_a_data_set(data_folder):
    shared = recognise(data_folder)
    assert (shared.kind, shared.repo_type, shared.left_out) == ("dataset", "dataset", ())
    assert {name.split("/")[0] for name in shared.files} == {"train", "dev"}


@pytest.mark.parametrize("name", ["training_args.bin", "a.pt", "deep/er/a.pth", "a.ckpt", "A.PKL"])
def test_pickled_files_are_refused(copy, model_folder, name):
    folder = copy(model_folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=rf"{name}: a pickled file can run code .*; remove it, or push a folder"):
        recognise(folder)


@pytest.mark.parametrize(
    "files, says",
    [
        ({}, r"no popen model \(config.json\), adapter .*; there: nothing"),
        ({"notes_DOT_txt": "x"}, "there: notes.txt"),
        ({"config_DOT_json": {"model_type": "llava"}}, "a checkpoint of architecture 'llava'; only popen models"),
        ({"config_DOT_json": {"model_type": "popen"}}, r"no \.safetensors weights in it"),
        ({"config_DOT_json": []}, "config.json: not an object"),
        (
            {"config_DOT_json": {"model_type": "popen"}, "model_DOT_safetensors": "x"},
            "popen_processor.json is missing, so the model cannot be used; write the folder again",
        ),
        ({"adapter_config_DOT_json": {}}, "adapter_model.safetensors is missing, so the adapter cannot be used"),
        (
            {"mining_DOT_json": {}, "text__state_DOT_json": {}},
            "seg/state.json is missing, so the preferences cannot be used",
        ),
        ({"claim_DOT_json": {}, "shards__0__seg_DOT_parquet": "x"}, "mining was not finished there"),
    ],
)
def test_what_is_none_of_the_four(tmp_path, files, says):
    with pytest.raises(DataError, match=says):
        recognise(write(tmp_path, **files))


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; give that of a model"):
        recognise(tmp_path / "nowhere")
