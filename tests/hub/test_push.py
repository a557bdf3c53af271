"""What is pushed arrives byte for byte; what broke off goes on; what others wrote is kept."""

import hashlib
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from popen.cli import main
from popen.data.safe_io import DataError, write_json
from popen.hub.folder import recognise
from popen.hub.push import push
from tests.hub.conftest import ROOT


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def on_disk(folder, names):
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture
def sharded(copy, model_folder):
    """popen-tiny with its weights in three files."""
    folder = copy(model_folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{n}-of-00003.safetensors": dict(list(weights.items())[n - 1 :: 3]) for n in (1, 2, 3)}
    for name, part in parts.items():
        save_file(part, folder / name, {"format": "pt"})
    index = {tensor: name for name, part in parts.items() for tensor in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return folder


@pytest.mark.parametrize("kind", ["model", "preferences", "dataset"])
def test_every_file_arrives(hub, kind, model_folder, mined_folder, data_folder):
    folder = {"model": model_folder, "preferences": mined_folder, "dataset": data_folder}[kind]
    shared = recognise(folder)
    pushed = push(folder, "org/it")
    held = hub.files(shared.repo_type, "org/it")
    assert "written for you" in pushed.card and held.pop("README.md").startswith(b"---\n")
    assert held == on_disk(folder, shared.files)
    assert pushed.left_out == shared.left_out and pushed.url.startswith(hub.url)
    assert not (folder / "README.md").exists(), "the folder itself is only read"


def test_an_upload_that_broke_off_goes_on(hub, sharded):
    """The connection drops in the middle of the second of three files, again and again until the client gives up."""
    files = sorted(sharded.glob("*.safetensors"))
    hub.cut = sha(files[1])
    with pytest.raises(DataError, match=r"org/it: the upload broke off \(.*\); run the same command again"):
        push(sharded, "org/it")
    assert not hub.files("model", "org/it"), "nothing half is visible"
    first = sorted(hub.received)
    assert first == sorted([sha(files[0]), sha(files[2])])
    hub.cut = None
    push(sharded, "org/it")
    assert hub.received[len(first) :] == [sha(files[1])], "only what was missing is sent"
    held = hub.files("model", "org/it")
    assert all(held[file.name] == file.read_bytes() for file in files)


def test_a_second_push_sends_nothing(hub, model_folder):
    push(model_folder, "org/it")
    before = hub.repos["model", "org/it"].branches["main"]
    hub.log.clear()
    push(model_folder, "org/it")
    assert not [request for request in hub.log if request[0] == "PUT" or "/commit/" in request[1]]
    assert hub.repos["model", "org/it"].branches["main"] == before


def test_a_card_of_the_user_is_sent_as_it_is(hub, copy, model_folder):
    folder = copy(model_folder)
    text = "---\nlicense: mit\n---\n\n# Mine\n"
    (folder / "README.md").write_text(text)
    assert push(folder, "org/it").card == "yours"
    assert hub.files("model", "org/it")["README.md"] == text.encode() == (folder / "README.md").read_bytes()


def test_a_card_edited_on_the_hub_is_kept(hub, model_folder):
    hub.add("model", "org/it", {"README.md": b"# Edited there\n"})
    assert "kept as it is" in push(model_folder, "org/it").card
    assert hub.files("model", "org/it")["README.md"] == b"# Edited there\n"


def test_a_card_with_broken_metadata_stops_before_anything_is_sent(hub, copy, model_folder):
    folder = copy(model_folder)
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(DataError, match=r"README.md: its metadata cannot be used"):
        push(folder, "org/it")
    assert not hub.received and not hub.repos


def test_a_private_repository(hub, monkeypatch, model_folder):
    push(model_folder, "org/it", private=True)
    assert hub.repos["model", "org/it"].private
    monkeypatch.setenv("HF_TOKEN", "of somebody else")
    with pytest.raises(DataError, match=r"the Hub does not let you write there"):
        push(model_folder, "org/it")


def test_what_shall_be_private_does_not_go_to_a_public_place(hub, model_folder):
    hub.add("model", "org/it", {})
    with pytest.raises(DataError, match=r"org/it: exists and is public; make it private in its settings"):
        push(model_folder, "org/it", private=True)
    assert not hub.received and not hub.files("model", "org/it")


def test_a_branch(hub, model_folder):
    push(model_folder, "org/it", revision="v2")
    assert not hub.files("model", "org/it", "main")
    assert "model.safetensors" in hub.files("model", "org/it", "v2")


def test_without_a_token(hub, monkeypatch, model_folder):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(
        DataError, match=r"does not let you write there \(.*401.*\); run `hf auth login` or set HF_TOKEN"
    ):
        push(model_folder, "org/it")


def test_offline(model_folder):
    with pytest.raises(DataError, match=r"org/it: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it"):
        push(model_folder, "org/it")


@pytest.mark.parametrize(
    "name, says", [("it", "give owner and name"), ("a/b/c", "not a name"), ("org/ä", "not a name")]
)
def test_a_name_that_is_none(hub, model_folder, name, says):
    with pytest.raises(DataError, match=says):
        push(model_folder, name)
    assert not hub.log


def test_code_of_a_data_set(hub, data_folder):
    with pytest.raises(DataError, match=r"only a model has code to export; leave --export-remote-code out"):
        push(data_folder, "org/it", remote_code=True)


def test_with_the_code(hub, model_folder):
    push(model_folder, "org/it", remote_code=True)
    held = hub.files("model", "org/it")
    assert b'"AutoModel": "remote_popen.PopenForReasoningSegmentation"' in held["config.json"]
    assert {"remote_popen.py", "lvlm_modeling_popen.py", "data_rle.py", "model.safetensors"} <= set(held)
    assert "trust_remote_code=True" in held["README.md"].decode()


def test_the_command(server, away, model_folder, tmp_path):
    summary = ROOT / "docs" / "results" / "popen_tiny_base.json"
    (model_folder / "notes.txt").write_text("mine")
    command = [
        sys.executable, "-m", "popen.cli", "push", str(model_folder), "org/it",
        "--license", "apache-2.0", "--summary", str(summary), "--command", "accelerate launch recipes/sft.py",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, env=away, cwd=ROOT, capture_output=True, text=True)
    finally:
        (model_folder / "notes.txt").unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"pushed to {server.url}/org/it/commit/")
    assert done.stdout.splitlines()[-1] == "left at home: notes.txt"
    assert "model.safetensors: 100%" in done.stderr, "a bar shows how far it is"
    data = ModelCard(server.files("model", "org/it")["README.md"].decode()).data
    assert data.license == "apache-2.0" and data.eval_results[0].metric_value == 0.7772


def test_the_command_says_what_is_wrong_in_one_line(capsys, tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert main(["push", str(tmp_path), "org/it"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"popen: {tmp_path / 'training_args.bin'}: a pickled file") and err.count("\n") == 1


def test_the_server_of_these_tests_is_honest(server):
    """What it stores under a hash has that hash: it takes no bytes for others."""
    request = urllib.request.Request(f"{server.url}/storage/{'0' * 64}", data=b"other bytes", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match=r"400") as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert not server.blobs
