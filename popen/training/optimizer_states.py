"""Bytes that an optimizer keeps for the weights it trains, by transformers' name for it; 8 bits need CUDA."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from popen.data.safe_io import DataError

SINGLE = 4
BLOCK = 256  # bitsandbytes: 8-bit states share a float32 scale in blocks of this size (Dettmers et al. 2022)
SMALLEST = 4096  # and tensors smaller than this keep states in float32
STATES_IN_TORCH = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0, "adagrad": 1, "rmsprop": 1}
STATES_IN_BITSANDBYTES = {
    "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "paged_adamw_32bit": 2,
    "lion_8bit": 1, "lion_32bit": 1, "paged_lion_8bit": 1, "paged_lion_32bit": 1,
    "ademamix": 3, "ademamix_8bit": 3, "paged_ademamix_8bit": 3, "paged_ademamix_32bit": 3,
    "rmsprop_bnb": 1, "rmsprop_bnb_8bit": 1, "rmsprop_bnb_32bit": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A weight that is trained: its number of entries, bytes of each, and what it is for."""

    entries: int
    itemsize: int
    embedding: bool = False
    hidden_matrix: bool = False


def optimizer_name(training: TrainingArguments) -> str:
    """What transformers calls the optimizer of a training."""
    return str(getattr(training.optim, "value", training.optim))


def check_optimizer(training: TrainingArguments) -> None:
    """Refuses an optimizer of bitsandbytes where it cannot run, before anything is loaded.

    Raises:
        DataError: CUDA or bitsandbytes is missing.
    """
    name = optimizer_name(training)
    if name in STATES_IN_BITSANDBYTES:
        check_bitsandbytes(f"optim {name}", "adamw_torch", torch.cuda.is_available() and not training.use_cpu)


def check_bitsandbytes(asked: str, instead: str, cuda: bool) -> None:
    """Refuses what bitsandbytes alone does where it cannot.

    Args:
        asked: what was asked for, and instead: what does without it; both stand in the errors.
    Raises:
        DataError: there is no CUDA, or bitsandbytes is missing.
    """
    if not cuda:
        raise DataError(f"{asked}: no CUDA device is here; leave it out, {instead} trains on any device")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DataError(f"{asked}: bitsandbytes is missing; pip install 'popen-seg[qlora]', or leave {asked} out")


def state_bytes(name: str, trained: Iterable[Trained], muon: bool = False) -> int:
    """Bytes of all states: as wide as the weight in torch, float32 or 8 bits in bitsandbytes.

    In 8 bits small tensors stay in float32, and so do embeddings, as transformers asks for it. Paged states may move
    to the host when memory is short; they are counted here.

    Args:
        muon: hidden matrices are trained with Muon, which keeps one state.
    Raises:
        DataError: an optimizer whose states are not known here; names those that are.
    """
    if name not in STATES_IN_TORCH | STATES_IN_BITSANDBYTES:
        known = ", ".join(STATES_IN_TORCH | STATES_IN_BITSANDBYTES)
        raise DataError(f"optim {name}: how much it keeps is not known; plan with one of {known}")
    total = 0
    for weight in trained:
        if muon and weight.hidden_matrix:
            total += weight.entries * weight.itemsize
        elif name in STATES_IN_TORCH:
            total += STATES_IN_TORCH[name] * weight.entries * weight.itemsize
        elif "8bit" in name and not weight.embedding and weight.entries >= SMALLEST:
            total += STATES_IN_BITSANDBYTES[name] * (weight.entries + SINGLE * -(-weight.entries // BLOCK))
        else:
            total += STATES_IN_BITSANDBYTES[name] * weight.entries * SINGLE
    return total
