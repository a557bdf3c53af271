"""Out of memory in training, said in one line: where, and the micro-batch to set instead, at the same global batch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from transformers import TrainingArguments

from popen.data.safe_io import DataError
from popen.lvlm.out_of_memory import reason
from popen.training.activations import activations, without_memory
from popen.training.memory import TRAINED_LOGIT, logits_at_once
from popen.training.optimizer_states import Trained, optimizer_name, state_bytes

SPARE = 0.1  # of the memory, as in `popen plan`


def smaller_batch(rows: int, accumulated: int, most: int) -> tuple[int, int]:
    """The largest micro-batch of at most `most` rows, and the micro-steps that keep the product; 1 ≤ most < rows."""
    total = rows * accumulated
    size = next(size for size in range(most, 0, -1) if total % size == 0)
    return size, total // size


@contextmanager
def named_batch(args: TrainingArguments, step: int, predict: Callable[[], int | None]) -> Iterator[None]:
    """Turns a device's out-of-memory error in a micro-step into a DataError that names the micro-batch to set.

    Args:
        predict: asked for only then, how many rows fit by calculation; None where nothing can tell.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if args.auto_find_batch_size:
            raise  # the Trainer tries smaller ones itself
        rows, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
        most = predict() if rows > 1 else 0
        way_out = "set bf16, gradient_checkpointing or use_peft, or split the model over devices (ZeRO-3)"
        if most != 0:
            known = most is not None and most < rows  # otherwise the device needs more than is counted
            size, more = smaller_batch(rows, accumulated, most if known else rows // 2)
            way_out = (
                f"set per_device_train_batch_size: {size} and gradient_accumulation_steps: {more}, the same global "
                f"batch, which is {'predicted to fit' if known else 'half, not known to fit: ask popen plan'}"
            )
        elif rows > 1:
            way_out = f"not even one is predicted to fit: {way_out}"
        raise DataError(f"step {step}: no memory for {rows} rows at a time ({reason(error)}); {way_out}") from error


@contextmanager
def named_rest(args: TrainingArguments, step: int) -> Iterator[None]:
    """The same of what no micro-batch changes: the model, and the optimizer, which makes its states in step 0."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if args.auto_find_batch_size:
            raise
        raise DataError(
            f"step {step}: no memory for weights, gradients and states of {optimizer_name(args)} ({reason(error)}), "
            "whatever the micro-batch; set use_peft or optim: adamw_bnb_8bit, or split them over devices (ZeRO)"
        ) from error


@contextmanager
def named_evaluation(args: TrainingArguments, step: int) -> Iterator[None]:
    """The same of an evaluation between steps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        rows = args.per_device_eval_batch_size
        way_out = f"try per_device_eval_batch_size: {rows // 2}" if rows > 1 else "set eval_strategy: no"
        raise DataError(
            f"evaluation after step {step}: no memory for {rows} rows at a time ({reason(error)}); {way_out}"
        ) from error


def device_memory(device: torch.device) -> int | None:
    """Bytes that this process can have of a device; None of a processor, which swaps before it refuses."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def rows_that_fit(
    model: nn.Module, batch: dict[str, torch.Tensor], rows: int, args: TrainingArguments, memory: int, copies: int = 1
) -> int:
    """How many rows of a batch fit beside weights, gradients and optimizer states, a tenth left free; 0 or more.

    The step is followed as in `popen plan`, on tensors without content, for the batch as it is, which is padded to
    its longest row; fewer rows are taken to need their share of it, and as many logits at once.

    Args:
        batch: what the model is given for `rows` rows. memory: of the device, in bytes.
        copies: of gradients; DistributedDataParallel holds two.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    states = state_bytes(optimizer_name(args), [Trained(p.numel(), p.element_size()) for p in trained])
    weights = sum(t.numel() * t.element_size() for t in chain(model.parameters(), model.buffers()))
    fixed = weights + copies * sum(p.numel() * p.element_size() for p in trained) + states
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    empty, mode = without_memory(copy.deepcopy(model, shared))  # modules are copied, weights are not
    compute = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    on_processor = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    logits = logits_at_once(len(batch.get("token_labels", ())), model.config.get_text_config().vocab_size)
    fixed += logits * TRAINED_LOGIT
    of_rows = activations(empty, mode, on_processor, compute).peak - logits * TRAINED_LOGIT
    return max(0, int((1 - SPARE) * memory - fixed) * rows // of_rows)
