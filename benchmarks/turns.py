"""Two sides of a comparison take turns on one machine, so that what else the machine does falls on both."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and those that this process kept cores busy: all threads, and programs that it ran."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of `turns` turns on the clock with their quartiles, and the median in processor seconds.

    Where other processes take the cores, processor seconds say more.
    """

    median: float
    low: float
    high: float
    cpu: float
    turns: int


def take_turns(
    sides: dict[str, Callable[[], object]], turns: int, what: str, warm_up: int = 1
) -> dict[str, list[Spent]]:
    """What each side's calls take, in order of the turns; the side that goes first alternates.

    Args:
        sides: what to call, by name. warm_up: turns that are left out: they find kernels and fill caches.
    Raises:
        ValueError: fewer than one turn.
    """
    if turns < 1:
        raise ValueError(f"{turns} turns: each side needs at least one")
    taken: dict[str, list[Spent]] = {name: [] for name in sides}
    names = list(sides)
    for turn in tqdm(range(warm_up + turns), desc=what, unit="turn"):
        for name in names if turn % 2 else reversed(names):
            spent = timed(sides[name])
            if turn >= warm_up:
                taken[name].append(spent)
    return taken


def timed(work: Callable[[], object]) -> Spent:
    """What one call takes, with what it left running on a GPU."""
    wait_for_gpu()
    start, busy = time.perf_counter(), processor_seconds()
    work()
    wait_for_gpu()
    return Spent(time.perf_counter() - start, processor_seconds() - busy)


def processor_seconds() -> float:
    """Of this process so far, and of those that it started and saw end."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(over: list[Spent], under: list[Spent]) -> Ratio:
    """over / under, turn by turn: neighbours in time met the same machine.

    Raises:
        ValueError: no turns, or not as many of both.
    """
    if not over or len(over) != len(under):
        raise ValueError(f"{len(over)} and {len(under)} turns: a ratio needs as many of both, at least one")
    found = sorted(o.wall / u.wall for o, u in zip(over, under, strict=True))
    busy = median(o.cpu / u.cpu for o, u in zip(over, under, strict=True))
    return Ratio(median(found), found[len(found) // 4], found[-1 - len(found) // 4], busy, len(found))
