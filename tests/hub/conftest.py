"""What the tests of sharing share: a Hub on this machine, the shipped model, and things to put on the Hub."""

import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants, hf_api

from popen.cli import TINY
from popen.data.schema import write_dataset
from popen.lvlm.loading import load_model
from popen.lvlm.mining import MiningArguments, mine
from tests.hub.hub_server import HubServer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def server():
    served = HubServer()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """huggingface_hub of this process talks to the server here, with an empty cache and no waiting between tries."""
    monkeypatch.setenv("HF_TOKEN", server.token)
    own = {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_XET_CACHE": str(tmp_path / "xet"),
    }
    for name, value in own.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    close_session()  # a connection it kept may lead to the server of an earlier test, when a port comes again
    yield server
    close_session()


@pytest.fixture
def away(server, tmp_path):
    """The environment of another process that talks to the same Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    return kept | {
        "HF_ENDPOINT": server.url, "HF_TOKEN": server.token, "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """popen-tiny without its card."""
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("shared") / "tiny")
    (folder / "README.md").unlink()
    return folder


@pytest.fixture(scope="session")
def shipped(model_folder):
    """popen-tiny itself, ready to answer, and its processor."""
    model, processor = load_model(model_folder)
    return model.eval(), processor


@pytest.fixture(scope="session")
def data_folder(samples, tmp_path_factory):
    """Two scenes to train on and one to look at."""
    folder = tmp_path_factory.mktemp("shared") / "scenes"
    write_dataset(samples[:2], folder, "train")
    write_dataset(samples[2:3], folder, "dev")
    return folder


@pytest.fixture(scope="session")
def mined_folder(shipped, model_folder, data_folder, tmp_path_factory):
    """What the shipped model's mining wrote for one scene, shards and claim included."""
    from popen.data.schema import load_split

    folder = tmp_path_factory.mktemp("shared") / "mined"
    settings = MiningArguments(candidates=4, views="embedding", margin=0.001, temperature=2.0)
    mine(*shipped, load_split(data_folder, "train"), range(1), model_folder, folder, settings)
    return folder


@pytest.fixture
def copy(tmp_path):
    """Copies a shared folder, to be changed."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copy" / folder.name)
