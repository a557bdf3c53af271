"""Plain data out of a pickle that nobody vouches for, such as the `refs(*).p` of the RefCOCO family.

A pickle is a program. Here a child process without our memory, with little of its own and with nothing it could call
runs it (`restricted_pickle_child`), and hands back JSON: nothing is unpickled in this process.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from popen.data.safe_io import DataError

CHILD = Path(__file__).with_name("restricted_pickle_child.py")
WAIT = 600  # seconds; the child's own limit is of processor time, which a busy machine hands out slowly


def read_plain_pickle(path: str | Path) -> Any:
    """Read a pickle of lists, dicts with text keys, text, finite numbers, booleans and None (tuples become lists).

    Raises:
        DataError: missing, no pickle, code or any other kind of object in it, over 128 MiB, or over the child's
            limits: 512 MiB of memory, 5 seconds of the processor, 2**23 values, a depth of 16.
    """
    command = [sys.executable, "-I", "-S", str(CHILD)]
    try:
        with open(path, "rb") as file:
            child = subprocess.run(command, stdin=file, capture_output=True, timeout=WAIT, env={}, check=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path or run the download again") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"{path}: not read within {WAIT} seconds; fetch it again from a source you trust") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if child.returncode < 0:
        raise DataError(
            f"{path}: the reader was stopped by signal {-child.returncode}, out of time or memory; "
            "fetch it again from a source you trust"
        )
    if child.returncode:
        reason = " ".join(child.stderr.decode("utf-8", "replace").split())[-250:]
        raise DataError(f"{path}: not a pickle of plain data: {reason}; fetch it again from a source you trust")
    return json.loads(child.stdout)
