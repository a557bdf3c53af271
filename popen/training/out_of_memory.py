"""Out of memory, said in one line: the next smaller micro-batch, at the same global batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainingArguments

from popen.data.safe_io import DataError


def smaller_batch(rows: int, accumulated: int) -> tuple[int, int]:
    """The largest micro-batch of at most half the rows, and the micro-steps that keep the product; rows > 1."""
    total = rows * accumulated
    half = next(size for size in range(rows // 2, 0, -1) if total % size == 0)
    return half, total // half


@contextmanager
def named_batch(args: TrainingArguments, step: int) -> Iterator[None]:
    """Turns a device's out-of-memory error into a DataError that names the settings to try next."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if args.auto_find_batch_size:
            raise  # the Trainer tries smaller ones itself
        rows, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
        reason = str(error).split(". ")[0].strip() or "out of memory"
        way_out = "set bf16, gradient_checkpointing or use_peft, or split the model over devices (ZeRO-3)"
        if rows > 1:
            half, more = smaller_batch(rows, accumulated)
            way_out = (
                f"set per_device_train_batch_size: {half} and gradient_accumulation_steps: {more}, "
                "which is the same global batch"
            )
        raise DataError(f"step {step}: no memory for {rows} rows at a time ({reason}); {way_out}") from error
