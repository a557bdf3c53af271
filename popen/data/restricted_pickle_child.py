"""Reads a pickle of plain data on stdin and writes it as JSON on stdout: a program, started by `restricted_pickle`.

The only file that knows `pickle`. It looks up no name a pickle asks for, limits itself before it reads, and imports
nothing but the standard library. What is wrong is one line on stderr and exit code 1.
"""

import gc
import io
import json
import math
import pickle
import resource
import sys
from typing import Any, NoReturn

MAX_BYTES = 2**27
MAX_MEMORY = 2**29  # address space, bytes
MAX_SECONDS = 5  # of the processor
MAX_NODES = 2**23  # values and keys, counted as often as they would be written
MAX_CHARACTERS = 2**27
MAX_DEPTH = 16


class PlainUnpickler(pickle.Unpickler):
    """Makes lists, tuples, dicts, text, numbers, True, False and None, and nothing that needs a name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for the code {ascii(module)[:60]}.{ascii(name)[:60]}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside itself")


def check_plain(value: Any) -> None:
    """Walk a value level by level; a container that stands in two places counts twice, so that none can grow.

    Raises:
        ValueError: too many nodes or characters, too deep (also a container inside itself), half of a surrogate
            pair, or not plain data.
    """
    nodes = characters = 0
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            kind = type(node)
            if kind is str:
                characters += len(node)
                node.isascii() or node.encode("utf-8")  # half of a surrogate pair raises
            elif kind is list or kind is tuple:
                nodes += len(node)
                below += node if nodes <= MAX_NODES else ()
            elif kind is dict:
                nodes += 2 * len(node)
                for key in node:
                    if type(key) is not str:
                        raise ValueError(f"it has a key that is no text but {type(key).__name__}")
                    characters += len(key)
                below += node.values() if nodes <= MAX_NODES else ()
            elif kind is int:
                if not -(2**63) <= node < 2**63:
                    raise ValueError("it has a whole number beyond 64 bits")
            elif kind is float:
                if not math.isfinite(node):
                    raise ValueError("it has a number that is not finite")
            elif node is not None and kind is not bool:
                raise ValueError(f"it has a value of the kind {kind.__name__}")
            if nodes > MAX_NODES or characters > MAX_CHARACTERS:
                raise ValueError(f"it is over {MAX_NODES} values or {MAX_CHARACTERS} characters")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested over {MAX_DEPTH} deep")


def main() -> int:
    gc.disable()  # millions of containers, none of them garbage: half of the time would go to looking
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is over {MAX_BYTES} bytes")
        # the benchmarks' files are Python 2's, whose text comes as bytes
        value = PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
        del data
        check_plain(value)
        sys.stdout.write(json.dumps(value, check_circular=False, allow_nan=False))
        sys.stdout.flush()
    except MemoryError:
        print(f"it needs over {MAX_MEMORY} bytes of memory", file=sys.stderr)
        return 1
    except Exception as error:  # a broken pickle raises whatever its bytes lead to
        print(" ".join(str(error).split())[:200] or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
