"""How a command ends when something a user can mend went wrong: one line on stderr and exit code 1."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turns ValueError, OSError and FloatingPointError into one line; POPEN_TRACEBACK=1 shows the whole story.

    DataError and StorageError are among these. Anything else is a fault of ours and keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("POPEN_TRACEBACK"):
            raise
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
