"""The fingerprint of a model folder."""

import hashlib
import json

import pytest

from popen.data.safe_io import DataError
from popen.preference import reference
from popen.preference.reference import check_fingerprint, check_reference, model_fingerprint


def test_fingerprint_is_sha256_over_names_and_bytes(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(b"two")
    (tmp_path / "a.safetensors").write_bytes(b"one")
    expected = hashlib.sha256(b"a.safetensorsone" + b"b.safetensorstwo").hexdigest()
    assert model_fingerprint(tmp_path) == model_fingerprint(str(tmp_path)) == expected


def test_only_weights_count(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(5 << 20))  # more than one read
    before = model_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert model_fingerprint(tmp_path) == before
    weights.write_bytes(bytes((5 << 20) - 1) + b"\1")
    assert model_fingerprint(tmp_path) != before


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_no_weights(tmp_path, folder):
    with pytest.raises(DataError, match=r"no \.safetensors weights to take a fingerprint of"):
        model_fingerprint(tmp_path / folder)


@pytest.mark.parametrize("what", ["model", "data set"])
def test_another_reference_is_refused(what):
    check_fingerprint("a" * 64, "a" * 64, what, "runs/mined")
    with pytest.raises(DataError, match=f"runs/mined: mined from {what} aaaaaaaaaaaa, this one is bbbbbbbbbbbb"):
        check_fingerprint("a" * 64, "b" * 64, what, "runs/mined")


def test_another_models_numbers_are_refused(tmp_path):
    """Both models by name and fingerprint, and three ways out; reports of before have no name."""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    own = model_fingerprint(tmp_path)
    check_reference({"model": own}, tmp_path, "runs/mined")
    for report, name in (
        ({"model": "a" * 64, "model_name": "runs/sft"}, "runs/sft"),
        ({"model": "a" * 64}, "unnamed"),
    ):
        with pytest.raises(DataError) as refusal:
            check_reference(report, tmp_path, "runs/mined")
        message = str(refusal.value)
        assert message.startswith(f"runs/mined: its reference numbers are of model {name} (aaaaaaaaaaaa), this model")
        assert f"{tmp_path} ({own[:12]})" in message and "\n" not in message
        assert "give the model that was mined, mine again, or compute the reference with reference: live" in message


def test_an_adapter_counts_with_its_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder, content in ((base, b"base"), (adapter, b"lora")):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
    alone = model_fingerprint(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    with_base = model_fingerprint(adapter)
    (base / "model.safetensors").write_bytes(b"other")
    assert len({alone, with_base, model_fingerprint(adapter)}) == 3


def test_a_repository_counts_as_its_files(tmp_path, monkeypatch):
    """What the Hub's cache would hold; the fetching itself is tested in tests/hub."""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    asked = []
    monkeypatch.setattr(reference, "snapshot_download", lambda name, **given: asked.append(name) or str(tmp_path))
    assert model_fingerprint("org/name") == model_fingerprint(tmp_path) and asked == ["org/name"]


def test_a_repository_out_of_reach():
    with pytest.raises(DataError, match="org/name: no such folder, nor a model on the Hub within reach"):
        model_fingerprint("org/name")
