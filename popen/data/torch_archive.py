"""Tensors out of a `.pt`, `.pth` or `.bin` file of torch without unpickling it.

Such a file is a zip archive: `data.pkl` says which tensors there are, `data/<n>` hold their bytes. The pickle is a
program; here its opcodes are read one by one and only those that a state dict needs are followed. Names of functions
are compared with a short list and never looked up, so nothing in the file can be called.
"""

import math
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from popen.data.safe_io import DataError

LARGEST_PICKLE = 64 << 20  # of data.pkl; a model of a thousand tensors has 100 kB
STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}  # fmt: skip
REBUILD = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
ORDERED = "collections OrderedDict"
MARK = object()


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names; it is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    count: int


def read_torch_archive(path: str | Path) -> dict[str, Any]:
    """Dicts, lists, numbers, text and tensors of a file that `torch.save` wrote (zip format, since torch 1.6).

    Raises:
        DataError: no such file, another format, a tensor beyond its storage, or anything in the pickle beyond plain
            data and tensors; names the file and what it was.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1 or archive.getinfo(pickles[0]).file_size > LARGEST_PICKLE:
                raise DataError(
                    f"{path}: not one data.pkl of at most {LARGEST_PICKLE >> 20} MiB in it; not of torch.save"
                )
            root = pickles[0].removesuffix("data.pkl")
            return _Reader(path, archive, root).read(archive.read(pickles[0]))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: not an archive that torch.save wrote since torch 1.6 ({error})") from None


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str):
        self.path, self.archive, self.root = path, archive, root
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, torch.Tensor] = {}

    def read(self, program: bytes) -> dict[str, Any]:
        try:
            for opcode, argument, position in pickletools.genops(program):
                if opcode.name == "STOP":
                    break
                self._step(opcode.name, argument, position)
            (value,) = self.stack
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.path}: its data.pkl is broken ({type(error).__name__}: {error})") from None
        if not isinstance(value, dict):
            raise DataError(f"{self.path}: holds {type(value).__name__}, not a dict of tensors")
        return value

    def _step(self, name: str, argument: Any, position: int) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"):
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._since_mark()
            self._top(dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._reduce(function, arguments))
        elif name == "BUILD":  # the `_metadata` of a module's state dict: versions of its layers
            stack.pop()
            self._top(dict)
        else:
            raise DataError(f"{self.path}: opcode {name} at byte {position} of data.pkl is none of a dict of tensors")

    def _since_mark(self) -> list[Any]:
        at = len(self.stack) - 1 - self.stack[::-1].index(MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"{kind.__name__} expected, {type(self.stack[-1]).__name__} found")
        return self.stack[-1]

    def _storage(self, given: tuple) -> _Storage:
        kind, storage, key, _, count = given
        name = storage.name.split(" ")
        if kind != "storage" or name[0] != "torch" or name[1] not in STORAGES:
            raise DataError(f"{self.path}: a storage of {storage.name!r}; known are {', '.join(STORAGES)}")
        return _Storage(STORAGES[name[1]], str(key), int(count))

    def _reduce(self, function: Any, arguments: tuple) -> Any:
        name = function.name if isinstance(function, _Name) else repr(function)
        if name == ORDERED and arguments == ():
            return {}
        if name == PARAMETER:
            return arguments[0]
        if name != REBUILD:
            raise DataError(f"{self.path}: asks to call {name!r}, which no dict of tensors needs; do not trust it")
        storage, offset, size, stride = arguments[:4]
        return self._tensor(storage, offset, tuple(size), tuple(stride))

    def _tensor(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
            raise ValueError(f"a tensor of size {size}, stride {stride} and offset {offset}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if math.prod(size) else -1
        values = self._values(storage)
        if last >= len(values):
            raise DataError(f"{self.path}: a tensor of size {size} reaches beyond storage {storage.key}")
        return values.as_strided(size, stride, offset).clone()

    def _values(self, storage: _Storage) -> torch.Tensor:
        if storage.key not in self.storages:
            entry = self.archive.getinfo(f"{self.root}data/{storage.key}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != storage.count * storage.dtype.itemsize:
                raise DataError(
                    f"{self.path}: storage {storage.key} has {entry.file_size} bytes, "
                    f"not {storage.count} plain values of {storage.dtype}; copy the file again"
                )
            raw = bytearray(self.archive.read(entry))
            self.storages[storage.key] = torch.frombuffer(raw, dtype=storage.dtype) if raw else torch.empty(0)
        return self.storages[storage.key]
