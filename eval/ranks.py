"""Several processes share an evaluation: every picture is answered once, in the same company on any number of them.

Pictures are dealt in chunks that do not depend on how many processes there are, without padding, so that a batch holds
the same questions everywhere and 1 and N processes give the same numbers. Start with `accelerate launch -m eval.…` or
`torchrun -m eval.…`; a process that fails ends the run, and nothing is written.
"""

from collections.abc import Collection

from eval.rows import check_whole
from popen.distributed.ranks import Ranks

CHUNK = 8  # pictures answered together


def share(ranks: Ranks, count: int) -> list[range]:
    """This process's chunks of `count` pictures."""
    return ranks.deal([range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)])


def gather_rows(ranks: Ranks, rows: list[dict], expected: Collection[str], where: str) -> list[dict]:
    """All processes' rows on the first one, sorted by id; none on the others.

    Raises:
        DataError: ids are missing, doubled or unknown.
    """
    parts = ranks.gather(rows)
    if not parts:
        return []
    rows = [row for part in parts for row in part]
    check_whole(rows, where, expected)
    return sorted(rows, key=lambda row: row["id"])
