"""Tensors out of a `.bin` that torch.save wrote, without unpickling: what is not a tensor's description is refused.

Such a file is a zip archive: raw storages, and a pickle that says which tensor is which part of which storage. That
pickle is a program; here its opcodes are read one by one, and only those that describe tensors have a meaning. Names
of Python objects stay text: nothing is imported, called or built.
"""

import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from popen.data.safe_io import DataError

MAX_PROGRAM = 2**27  # bytes; that of a model of 70 B parameters has under 1 MB
DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
}


@dataclass(frozen=True)
class Symbol:
    """The name of a Python object, "module name"; only ever compared."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Raw numbers in the archive: their type, their member's key and how many there are."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchArchive:
    """The state dict in a `.bin` file: `shapes` of its tensors, and each of them by name.

    Raises:
        DataError: not a zip archive of torch.save, or it holds anything but tensors by name.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                programs = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
                if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM:
                    raise DataError(f"{self.path}: no archive of torch.save (1.6 or later); save it as safetensors")
                self.root = programs[0].filename.removesuffix("data.pkl")
                program = archive.read(programs[0])
                order = f"{self.root}byteorder"
                if order in archive.namelist() and archive.read(order) != b"little":
                    raise DataError(f"{self.path}: written on a big-endian machine; save it as safetensors")
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{self.path}: cannot be read as an archive of torch.save ({error})") from error
        self.stored = described_tensors(program, str(self.path))
        self.shapes = {name: stored.shape for name, stored in self.stored.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor.

        Raises:
            DataError: its numbers are missing, or fewer than the tensor's shape asks for.
        """
        stored = self.stored[name]
        storage, member = stored.storage, f"{self.root}data/{stored.storage.key}"
        try:
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(member)
                if (
                    info.compress_type != zipfile.ZIP_STORED
                    or info.file_size != storage.count * storage.dtype.itemsize
                ):
                    raise DataError(f"{self.path}: the numbers of {name} are not as many as it says; fetch it again")
                raw = bytearray(archive.read(info))
        except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{self.path}: the numbers of {name} cannot be read ({error}); fetch it again") from error
        if 0 in stored.shape:
            return torch.empty(stored.shape, dtype=storage.dtype)
        last = stored.offset + sum((n - 1) * step for n, step in zip(stored.shape, stored.stride, strict=True))
        if last >= storage.count:
            raise DataError(f"{self.path}: {name} reaches beyond its numbers; fetch it again")
        return torch.frombuffer(raw, dtype=storage.dtype).as_strided(stored.shape, stored.stride, stored.offset)


def described_tensors(program: bytes, name: str) -> dict[str, StoredTensor]:
    """What a pickle says about tensors; `name` stands in the errors.

    Raises:
        DataError: it says anything else.
    """
    try:
        state = _Reading().run(program)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{name}: not a plain state dict ({reason}); nothing in it was run") from error
    for key, value in state.items():
        if not isinstance(value, StoredTensor):
            raise DataError(f"{name}: {key[:80]!r} is no tensor; give a checkpoint of weights alone")
    return state


class _Reading:
    """A stack machine for the opcodes of a state dict's pickle (protocol 2, as torch writes it)."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> dict[Any, Any]:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                (state,) = self.stack
                if not isinstance(state, dict):
                    raise ValueError("it is no dict")
                return state
            self.step(opcode.name, argument)
        raise ValueError("it has no end")

    def step(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "PROTO":
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                self.stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "GLOBAL":
                self.stack.append(Symbol(argument))
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                self.stack.append(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                self.stack[-count:] = [tuple(self.stack[-count:])]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self.into_dict([key, value])
            case "SETITEMS":
                self.into_dict(self.since_mark())
            case "BUILD":  # an OrderedDict's attributes: the versions of modules
                self.stack.pop()
                self.into_dict([])
            case "BINPERSID":
                self.stack.append(storage_of(self.stack.pop()))
            case "REDUCE":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(described(function, arguments))
            case _:
                raise ValueError(f"it has the opcode {opcode}")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def into_dict(self, flat: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("it fills something that is no dict")
        if not all(isinstance(key, str) for key in flat[::2]):  # to hash a tuple of shared tuples can take for ever
            raise ValueError("it has keys that are no text")
        self.stack[-1].update(zip(flat[::2], flat[1::2], strict=True))


def storage_of(reference: Any) -> Storage:
    """("storage", type, key, device, count) to a storage."""
    kind, symbol, key, _, count = reference
    if kind != "storage" or not isinstance(symbol, Symbol) or not isinstance(key, str) or not _natural(count):
        raise ValueError("it refers to something that is no storage")
    if symbol.name not in DTYPES:
        raise ValueError(f"it has numbers of type {symbol.name[:40]}")
    return Storage(DTYPES[symbol.name], key, count)


def described(function: Any, arguments: Any) -> Any:
    """The three calls that a state dict is made of, as descriptions."""
    match function:
        case Symbol("collections OrderedDict") if arguments == ():
            return {}
        case Symbol("torch._utils _rebuild_tensor_v2"):
            storage, offset, shape, stride = arguments[:4]
            fits = isinstance(storage, Storage) and type(shape) is type(stride) is tuple and len(shape) == len(stride)
            if not fits or not all(map(_natural, (offset, *shape, *stride))):
                raise ValueError("it has a tensor without a plain shape in a storage")
            return StoredTensor(storage, offset, shape, stride)
        case Symbol("torch._utils _rebuild_parameter") if isinstance(arguments[0], StoredTensor):
            return arguments[0]
        case _:
            raise ValueError(f"it calls {function.name[:60] if isinstance(function, Symbol) else 'no function'}")


def _natural(number: Any) -> bool:
    return type(number) is int and number >= 0
