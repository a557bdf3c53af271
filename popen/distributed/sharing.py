"""Weights of which every rank holds a share (ZeRO-3, FSDP): who uses them gathers them, together with all ranks."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def is_shared(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether ranks hold a share of any of these each: then all of them have to use it equally often."""
    return any(isinstance(tensor, DTensor) or hasattr(tensor, "ds_id") for tensor in tensors)


def most_of_all(own: int, device: torch.device) -> int:
    """The largest of a number that each rank brings."""
    found = torch.tensor(own, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)
