"""Tensors out of torch's archives without running them: what torch.save writes comes back, what calls is refused."""

import io
import pickletools
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from popen.data.safe_io import DataError
from popen.data.torch_archive import read_torch_archive


def written(value, path):
    torch.save(value, path)
    return path


def archive(path, program: bytes, storages=None, compression=zipfile.ZIP_STORED):
    """An archive with a hand-written pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", program)
        for key, raw in (storages or {}).items():
            file.writestr(f"x/data/{key}", raw)
    return path


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8]
)
def test_every_type_comes_back(dtype, tmp_path):
    value = torch.arange(12).reshape(3, 4).to(dtype)
    found = read_torch_archive(written({"w": value}, tmp_path / "x.pt"))["w"]
    assert found.dtype == dtype and torch.equal(found, value)


def test_booleans_scalars_and_empty_tensors(tmp_path):
    value = {
        "b": torch.tensor([True, False]),
        "s": torch.tensor(2.5),
        "e": torch.zeros(0, 3),
        "n": 7,
        "t": ["a", None],
    }
    found = read_torch_archive(written(value, tmp_path / "x.pt"))
    assert torch.equal(found["b"], value["b"]) and found["s"] == 2.5 and found["e"].shape == (0, 3)
    assert found["n"] == 7 and found["t"] == ["a", None]


def test_views_of_one_storage(tmp_path):
    """A transpose, every second row and a tied matrix share bytes in the file and are whole tensors here."""
    base = torch.arange(24.0).reshape(4, 6)
    value = {"base": base, "turned": base.T, "rows": base[1::2], "tied": base}
    found = read_torch_archive(written(value, tmp_path / "x.pt"))
    assert all(
        torch.equal(found[k], value[k]) and found[k].is_contiguous() == value[k].is_contiguous()
        for k in value
        if k != "rows"
    )
    assert torch.equal(found["rows"], value["rows"])


def test_the_state_of_a_module(tmp_path):
    """An OrderedDict with torch's `_metadata`, inside a checkpoint with other things."""
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = module.state_dict()
    found = read_torch_archive(written({"model": state, "epoch": 3}, tmp_path / "x.pth"))
    assert found["epoch"] == 3 and found["model"].keys() == state.keys()
    assert all(torch.equal(found["model"][k], state[k]) for k in state)
    ordered = read_torch_archive(written(OrderedDict(p=nn.Parameter(torch.ones(2))), tmp_path / "y.pth"))
    assert torch.equal(ordered["p"], torch.ones(2))


CALLS = [
    b"cos\nsystem\n(X\x02\x00\x00\x00lstR.",
    b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
    b"ctorch._utils\n_rebuild_parameter_with_state\n(tR.",
    b"ctorch\nload\n(X\x01\x00\x00\x00ftR.",
]
OPCODES = [
    b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
    b"(ios\nsystem\n.",  # INST
    b"(cos\nsystem\no.",  # OBJ
    b"\x80\x02cos\nsystem\n)\x81.",  # NEWOBJ
    b"\x82\x01.",  # EXT1
    b"Pid\n.",  # PERSID
]


@pytest.mark.parametrize("program", CALLS)
def test_what_would_be_called_is_refused_by_name(program, tmp_path):
    with pytest.raises(DataError, match=r"x\.pt: asks to call '\S+ \S+', which no dict of tensors needs"):
        read_torch_archive(archive(tmp_path / "x.pt", program))


@pytest.mark.parametrize("program", OPCODES, ids=lambda p: next(op.name for op, _, _ in pickletools.genops(p)))
def test_other_opcodes_are_refused(program, tmp_path):
    with pytest.raises(DataError, match=r"x\.pt: opcode \w+ at byte \d+ of data\.pkl is none of a dict of tensors"):
        read_torch_archive(archive(tmp_path / "x.pt", program))


def edited(path, change) -> None:
    """Rewrites the pickle of an archive, or one of its storages."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, raw in change(entries).items():
            file.writestr(name, raw)


def test_a_storage_that_was_cut(tmp_path):
    path = written({"w": torch.ones(4)}, tmp_path / "x.pt")
    edited(path, lambda e: {n: raw[:8] if n.endswith("data/0") else raw for n, raw in e.items()})
    with pytest.raises(DataError, match=r"storage 0 has 8 bytes, not 4 plain values of torch\.float32"):
        read_torch_archive(path)


def test_a_tensor_beyond_its_storage(tmp_path):
    """The size 4 of the pickle's tuple becomes 5: one value more than there is."""
    path = written({"w": torch.ones(4)}, tmp_path / "x.pt")

    def longer(entries):
        return {
            n: raw.replace(b"K\x00K\x04\x85", b"K\x00K\x05\x85") if n.endswith(".pkl") else raw
            for n, raw in entries.items()
        }

    edited(path, longer)
    with pytest.raises(DataError, match=r"a tensor of size \(5,\) reaches beyond storage 0"):
        read_torch_archive(path)


def test_compressed_storages_are_refused(tmp_path):
    """They could hold far more than the file has bytes."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(4)}, buffer)
    with zipfile.ZipFile(buffer) as file:
        program = next(file.read(n) for n in file.namelist() if n.endswith("data.pkl"))
    path = archive(tmp_path / "x.pt", program, {"0": torch.ones(4).numpy().tobytes()}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="not 4 plain values"):
        read_torch_archive(path)


@pytest.mark.parametrize(
    "program, message",
    [
        (b"\x80\x02.", "is broken"),
        (b"\x80\x02]q\x00.", "holds list, not a dict of tensors"),
        (b"\x80\x02}h\x07.", "is broken"),
        (b"\x80\x02}K\x01u.", "is broken"),
    ],
)
def test_broken_programs(program, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_torch_archive(archive(tmp_path / "x.pt", program))


def test_other_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_torch_archive(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(DataError, match=r"not an archive that torch.save wrote since torch 1\.6"):
        read_torch_archive(tmp_path / "text.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as file:
        file.writestr("a.txt", "a")
    with pytest.raises(DataError, match=r"not one data\.pkl"):
        read_torch_archive(tmp_path / "zip.pt")
