"""Out of memory while questions are answered, said in one line: how many were too many, and what to try."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from popen.data.safe_io import DataError


@contextmanager
def questions_at_a_time(option: str, questions: int, kept: str = "") -> Iterator[None]:
    """Turns a device's out-of-memory error into a DataError that names a smaller number to try.

    Half as many need no more than half of what grows with them; whether that fits beside the model is not known.

    Args:
        option: its name and what stands between it and the number, as "--batch-size ". kept: what is not lost.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        way_out = f"try {option}{max(questions // 2, 1)}, then half of that"
        if questions <= 1:
            way_out = "a single question does not fit beside the model; load it in fewer bits or use a larger device"
        raise DataError(
            f"no memory for {questions} questions at a time ({reason(error)}); {way_out}{kept and '; '}{kept}"
        ) from error


def reason(error: torch.OutOfMemoryError) -> str:
    """The first sentence of what the device said."""
    return str(error).split(". ")[0].strip() or "out of memory"
