"""Tensors out of a `.pt`, `.pth` or `.bin` file of torch without unpickling it.

Such a file is a zip archive: `data.pkl` says which tensors there are, `data/<n>` hold their bytes. The pickle is a
program; here its opcodes are read one by one and only those that a state dict needs are followed. Names of functions
are compared with a short list and never looked up, so nothing in the file can be called.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable
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
class Storage:
    """Plain values in the archive: their type, the key of their bytes, and how many there are."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a storage; it can be read by `TorchArchive.tensor`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch_archive(path: str | Path) -> dict[str, Any]:
    """Dicts, lists, numbers, text and tensors of a file that `torch.save` wrote (zip format, since torch 1.6).

    Raises:
        DataError: no such file, another format, a tensor beyond its storage, or anything in the pickle beyond plain
            data and tensors; names the file and what it was.
    """
    archive = TorchArchive(path)
    read: dict[Storage, torch.Tensor] = {}

    def whole(stored: StoredTensor) -> torch.Tensor:
        if stored.storage not in read:
            read[stored.storage] = archive.values(stored.storage)
        return archive.view(stored, read[stored.storage]).clone()

    return _Reader(archive.path, whole).read(archive.program)


class TorchArchive:
    """The same with tensors left in the file until they are asked for: `state` has a `StoredTensor` for each.

    Raises:
        DataError: as `read_torch_archive`, but for the bytes of tensors.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if len(pickles) != 1 or archive.getinfo(pickles[0]).file_size > LARGEST_PICKLE:
                    raise DataError(
                        f"{self.path}: not one data.pkl of at most {LARGEST_PICKLE >> 20} MiB in it; not of torch.save"
                    )
                self.root = pickles[0].removesuffix("data.pkl")
                self.program, order = archive.read(pickles[0]), f"{self.root}byteorder"
                if order in archive.namelist() and archive.read(order) != b"little":
                    raise DataError(f"{self.path}: its values are big-endian; save it again on another machine")
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such file") from None
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{self.path}: not an archive that torch.save wrote since torch 1.6 ({error})") from None
        self.state: dict[str, Any] = _Reader(self.path, lambda stored: stored).read(self.program)

    def tensor(self, stored: StoredTensor) -> torch.Tensor:
        """Reads one tensor's storage, and the tensor out of it.

        Raises:
            DataError: the storage is missing, cut or compressed, or the tensor reaches beyond it.
        """
        return self.view(stored, self.values(stored.storage))

    def view(self, stored: StoredTensor, values: torch.Tensor) -> torch.Tensor:
        """The tensor out of its storage's values; it shares their memory."""
        shape, stride = stored.shape, stored.stride
        last = stored.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if 0 not in shape and max(last + 1, math.prod(shape)) > len(values):  # also one value claimed to be many
            raise DataError(f"{self.path}: a tensor of size {shape} reaches beyond storage {stored.storage.key}")
        return values.as_strided(shape, stride, 0 if 0 in shape else stored.offset)

    def values(self, storage: Storage) -> torch.Tensor:
        """All values of a storage, (count,)."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                entry = archive.getinfo(f"{self.root}data/{storage.key}")
                if (
                    entry.compress_type != zipfile.ZIP_STORED
                    or entry.file_size != storage.count * storage.dtype.itemsize
                ):
                    raise DataError(
                        f"{self.path}: storage {storage.key} has {entry.file_size} bytes, "
                        f"not {storage.count} plain values of {storage.dtype}; copy the file again"
                    )
                raw = bytearray(archive.read(entry))
        except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{self.path}: storage {storage.key} cannot be read ({error}); copy it again") from None
        return torch.frombuffer(raw, dtype=storage.dtype) if raw else torch.empty(0, dtype=storage.dtype)


class _Reader:
    """Follows a pickle's opcodes; `make` is given each tensor's description and returns what stands for it."""

    def __init__(self, path: Path, make: Callable[[StoredTensor], Any]):
        self.path, self.make = path, make
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, program: bytes) -> dict[str, Any]:
        try:
            for opcode, argument, position in pickletools.genops(program):
                if opcode.name == "STOP":
                    break
                self._step(opcode.name, argument, position)
            (value,) = self.stack
        except DataError:
            raise
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
            if not all(type(key) in (str, int) for key in items[::2]):  # hashing shared tuples can take for ever
                raise ValueError("a key that is neither text nor a number")
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

    # Values may be tuples of shared tuples, whose text, hash or sum is exponential: types are checked before use.

    def _storage(self, given: tuple) -> Storage:
        kind, storage, key, _, count = given
        if kind != "storage" or type(storage) is not _Name or type(key) is not str or not _natural(count):
            raise ValueError("a reference to something that is no storage")
        name = storage.name.split(" ")
        if name[0] != "torch" or name[1] not in STORAGES:
            raise DataError(f"{self.path}: a storage of {storage.name!r}; known are {', '.join(STORAGES)}")
        return Storage(STORAGES[name[1]], key, count)

    def _reduce(self, function: Any, arguments: tuple) -> Any:
        if type(function) is not _Name or type(arguments) is not tuple:
            raise ValueError("a call of something without a name")
        if function.name == ORDERED and arguments == ():
            return {}
        if function.name == PARAMETER and type(arguments[0]) in (StoredTensor, torch.Tensor):
            return arguments[0]
        if function.name != REBUILD:
            raise DataError(
                f"{self.path}: asks to call {function.name!r}, which no dict of tensors needs; do not trust it"
            )
        storage, offset, size, stride = arguments[:4]
        if type(storage) is not Storage or not type(size) is type(stride) is tuple or len(size) != len(stride):
            raise ValueError("a tensor that is no view of a storage")
        if not all(map(_natural, (offset, *size, *stride))):
            raise ValueError("a tensor whose size, stride or offset are no natural numbers")
        return self.make(StoredTensor(storage, offset, size, stride))


def _natural(number: Any) -> bool:
    return type(number) is int and number >= 0
