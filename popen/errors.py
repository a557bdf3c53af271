"""How a command ends when something a user can mend went wrong: one line on stderr and exit code 1."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOST = ("Connection closed by peer", "Connection reset by peer")  # gloo's words for a process that is gone
GRACE = 20.0  # seconds that a launcher has to find it


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turns ValueError, OSError and FloatingPointError into one line; POPEN_TRACEBACK=1 shows the whole story.

    DataError and StorageError are among these. Of several processes each says its rank, and one that lost another
    waits for the launcher to end it. Anything else is a fault of ours and keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("POPEN_TRACEBACK"):
            raise
        print(f"{program}: {_who()}{' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        print(f"{program}: {_who()}another process has ended; the launcher names the first", file=sys.stderr)
        time.sleep(GRACE)  # whoever ends now might be taken for the first
        raise SystemExit(1) from None


def _who() -> str:
    """Which process says so, where there are several."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"rank {os.environ['RANK']}: " if several else ""
