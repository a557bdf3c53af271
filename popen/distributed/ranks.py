"""Several processes share work: which of them this is, which part is its own, and what they tell one another.

Started with `accelerate launch`, `torchrun` or anything else that sets RANK and WORLD_SIZE; alone without.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from popen.distributed.pulse import watched_peers

PATIENCE = timedelta(hours=12)  # how long the first to finish waits for the last; a dead one is noticed in seconds


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1

    @property
    def device(self) -> str:
        """The accelerator of this process, "cpu" without one."""
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"

    def deal(self, work: Sequence) -> list:
        """This process's part of the work: every `world`-th piece, from the `rank`-th on; no padding."""
        return list(work[self.rank :: self.world])

    def gather(self, own: Any) -> list:
        """What each process brings, in order of rank, on the first one; nothing on the others."""
        if self.world == 1:
            return [own]
        parts: list | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(own, parts)
        return parts or []

    def first(self, act: Callable[[], Any]) -> Any:
        """The first process acts while the others wait; all have the result.

        Raises:
            ValueError, OSError: of `act`, on the first process; SystemExit on the others, which have nothing to add.
        """
        if self.world == 1:
            return act()
        told: list = [None, None]  # whether it went well, and the result
        if self.rank == 0:
            try:
                told = [True, act()]
            except (ValueError, OSError):
                dist.broadcast_object_list([False, None])
                raise
        dist.broadcast_object_list(told)
        if not told[0]:
            raise SystemExit(1)
        return told[1]


ALONE = Ranks()


@contextmanager
def launched() -> Iterator[Ranks]:
    """The processes that a launcher started, joined for as long as the context lasts; one alone where none did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=PATIENCE)  # rows travel, no tensors
    try:
        with watched_peers():
            yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
