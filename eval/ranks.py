"""Several processes share an evaluation: every picture is answered once, in the same company on any number of them.

Pictures are dealt in chunks that do not depend on how many processes there are, without padding, so that a batch holds
the same questions everywhere and 1 and N processes give the same numbers. Start with `accelerate launch -m eval.…` or
`torchrun -m eval.…`; a process that fails ends the run, and nothing is written.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from eval.rows import check_whole

CHUNK = 8  # pictures answered together
PATIENCE = timedelta(hours=12)  # how long the first to finish waits for the last


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

    def share(self, count: int) -> list[range]:
        """This process's chunks of `count` pictures: every `world`-th, from the `rank`-th on."""
        return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)][self.rank :: self.world]

    def gather(self, rows: list[dict], expected: Collection[str], where: str) -> list[dict]:
        """All processes' rows on the first one, sorted by id; none on the others.

        Raises:
            DataError: ids are missing, doubled or unknown.
        """
        if self.world > 1:
            parts: list | None = [None] * self.world if self.rank == 0 else None
            dist.gather_object(rows, parts)
            if parts is None:
                return []
            rows = [row for part in parts for row in part]
        check_whole(rows, where, expected)
        return sorted(rows, key=lambda row: row["id"])


@contextmanager
def launched() -> Iterator[Ranks]:
    """The processes that a launcher started, joined for as long as the context lasts; one alone where none did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)  # rows travel, no tensors
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
