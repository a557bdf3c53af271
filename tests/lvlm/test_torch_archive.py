"""Tensors from torch.save's archives: equal to what was saved, and nothing that the file says is run."""

import collections
import io
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.safe_io import DataError
from popen.lvlm.torch_archive import TorchArchive, described_tensors


def saved(path, state):
    torch.save(state, path)
    return path


def test_every_kind_of_tensor(tmp_path):
    """Types, no dimensions, none of a kind, transposed, views that share a storage, parameters."""
    base = torch.randn(6, 4)
    state = {
        "float": base, "half": base.half(), "bfloat": base.bfloat16(), "double": base.double(),
        "long": torch.arange(5), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "transposed": base.T,
        "view": base[2:, 1], "again": base, "parameter": torch.nn.Parameter(base),
    }  # fmt: skip
    archive = TorchArchive(saved(tmp_path / "all.bin", state))
    assert archive.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        read = archive.tensor(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor), name


def test_a_modules_state_dict(tmp_path):
    """An OrderedDict with the versions of its modules beside the tensors."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    archive = TorchArchive(saved(tmp_path / "module.bin", module.state_dict()))
    assert list(archive.shapes) == list(module.state_dict())
    assert all(torch.equal(archive.tensor(n), t) for n, t in module.state_dict().items())


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call, named",
    [((os.mkdir, "made"), "mkdir"), ((eval, "1"), "eval"), ((print, 3), "print"),
     ((collections.OrderedDict, [("a", 1)]), "OrderedDict|opcode")],
    ids=["mkdir", "eval", "print", "arguments"],
)  # fmt: skip
def test_nothing_is_called(tmp_path, monkeypatch, call, named):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "evil.bin", {"weight": torch.zeros(2), "x": Runs(*call)})
    with pytest.raises(DataError, match=rf"evil\.bin: not a plain state dict \(.*({named}).*nothing in it was run"):
        TorchArchive(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [3, "text", {"inner": torch.zeros(1)}, None])
def test_what_is_no_tensor_is_named(tmp_path, value):
    with pytest.raises(DataError, match="'step' is no tensor; give a checkpoint of weights alone"):
        TorchArchive(saved(tmp_path / "training.bin", {"weight": torch.zeros(2), "step": value}))


def test_a_bare_tensor(tmp_path):
    with pytest.raises(DataError, match="it is no dict"):
        TorchArchive(saved(tmp_path / "tensor.bin", torch.zeros(2)))


def test_an_old_or_other_file(tmp_path):
    path = tmp_path / "old.bin"
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"old\.bin: cannot be read as an archive of torch\.save"):
        TorchArchive(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("note.txt", "no weights")
    with pytest.raises(DataError, match=r"old\.bin: no archive of torch\.save"):
        TorchArchive(path)
    with pytest.raises(DataError, match=r"gone\.bin: cannot be read"):
        TorchArchive(tmp_path / "gone.bin")


def rewritten(path, change):
    """The archive with its members changed by name; `change` gives the new bytes, or None to leave one out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if (data := change(name, data)) is not None:
                archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda n, d: d[:-4] if "/data/" in n else d, "the numbers of weight are not as many as it says"),
        (lambda n, d: None if "/data/" in n else d, "the numbers of weight cannot be read"),
        (lambda n, d: b"big" if n.endswith("byteorder") else d, "big-endian"),
        (lambda n, d: d[:-20] if n.endswith("pkl") else d, "not a plain state dict"),
        (lambda n, d: d.replace(b"K\x02K\x03\x86", b"K\x09K\x09\x86") if n.endswith("pkl") else d, "reaches beyond"),
    ],
    ids=["short", "gone", "big-endian", "cut", "beyond"],
)
def test_a_broken_archive(tmp_path, change, message):
    path = rewritten(saved(tmp_path / "broken.bin", {"weight": torch.zeros(2, 3)}), change)
    with pytest.raises(DataError, match=message):
        TorchArchive(path).tensor("weight")


@pytest.mark.parametrize("opcodes", [b"K\x01s", b"Q", b"R"], ids=["key", "storage", "call"])
def test_shared_tuples_are_not_looked_into(opcodes):
    """40 tuples, each twice the one before it, would be 2^40 to whoever hashes, prints or compares them."""
    program = b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 40 + opcodes + b"."
    with pytest.raises(DataError, match="nested: not a plain state dict"):
        described_tensors(program, "nested")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_bytes_are_read_or_refused(data):
    """A good program with some bytes changed: a description, or one DataError; never anything else."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        program = bytearray(archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    try:
        described_tensors(bytes(program), "fuzzed")
    except DataError as error:
        assert str(error).startswith("fuzzed: ") and "\n" not in str(error)


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.tuples(x, x)))
def test_other_pickles_are_refused(value):
    with pytest.raises(DataError, match="other: "):
        described_tensors(pickle.dumps({"x": value}, protocol=2), "other")
