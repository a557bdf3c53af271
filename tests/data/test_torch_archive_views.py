"""Tensors left in torch's archives until they are asked for, and hostile archives: refused, and nothing is run."""

import io
import os
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.safe_io import DataError
from popen.data.torch_archive import TorchArchive, read_torch_archive


def saved(path, state):
    torch.save(state, path)
    return path


def test_tensors_one_by_one(tmp_path):
    """Transposed, views that share a storage, none of a kind, parameters; shapes are known before any is read."""
    base = torch.randn(6, 4)
    state = {"base": base, "transposed": base.T, "view": base[2:, 1], "empty": torch.zeros(0, 3),
             "parameter": torch.nn.Parameter(base.bfloat16())}  # fmt: skip
    archive = TorchArchive(saved(tmp_path / "all.bin", state))
    assert {n: t.shape for n, t in archive.state.items()} == {n: tuple(t.shape) for n, t in state.items()}
    for name, tensor in state.items():
        read = archive.tensor(archive.state[name])
        assert read.dtype == tensor.dtype and torch.equal(read, tensor), name


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [(os.mkdir, "made"), (eval, "1"), (print, 3)], ids=["mkdir", "eval", "print"])
def test_nothing_is_called(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "evil.bin", {"weight": torch.zeros(2), "x": Runs(*call)})
    with pytest.raises(DataError, match=rf"evil\.bin: asks to call '\w+ {call[0].__name__}'"):
        TorchArchive(path)
    assert not (tmp_path / "made").exists()


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
        (lambda n, d: d[:-4] if "/data/" in n else d, "storage 0 has 20 bytes, not 6 plain values"),
        (lambda n, d: None if "/data/" in n else d, "storage 0 cannot be read"),
        (lambda n, d: b"big" if n.endswith("byteorder") else d, "big-endian"),
        (lambda n, d: d[:-20] if n.endswith("pkl") else d, "is broken"),
        (lambda n, d: d.replace(b"K\x02K\x03\x86", b"K\x09K\x09\x86") if n.endswith("pkl") else d, "reaches beyond"),
    ],
    ids=["short", "gone", "big-endian", "cut", "beyond"],
)
def test_a_broken_archive(tmp_path, change, message):
    path = rewritten(saved(tmp_path / "broken.bin", {"weight": torch.zeros(2, 3)}), change)
    with pytest.raises(DataError, match=message):
        read_torch_archive(path)


def test_one_value_that_claims_to_be_many(tmp_path):
    path = saved(tmp_path / "wide.bin", {"weight": torch.zeros(1).expand(10**12)})
    with pytest.raises(DataError, match=r"a tensor of size \(1000000000000,\) reaches beyond storage 0"):
        read_torch_archive(path)


def zipped(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
    return path


@pytest.mark.parametrize("opcodes", [b"K\x01s", b"Q", b"R"], ids=["key", "storage", "call"])
def test_shared_tuples_are_not_looked_into(tmp_path, opcodes):
    """40 tuples, each twice the one before it, would be 2^40 to whoever hashes, prints or compares them."""
    program = b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 40 + opcodes + b"."
    with pytest.raises(DataError, match=r"data\.pkl is broken"):
        TorchArchive(zipped(tmp_path / "nested.bin", program))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    """A good program with some bytes changed: a description, or one DataError; never anything else."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        program = bytearray(archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
    for _ in range(data.draw(st.integers(1, 4))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    try:
        TorchArchive(zipped(path, bytes(program)))
    except DataError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
