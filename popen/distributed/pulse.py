"""A process that falls silent ends the others, whatever they wait for, and is named.

A launcher ends the peers of a process that dies on its own machine. This is for all it does not see: another machine
that is gone, a process that is stopped. Each writes its pulse to the launcher's store and reads the others'. Rank 0,
or the launcher on its machine, keeps that store: who hears nothing from it has lost rank 0.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.distributed as dist

SILENCE = 45.0  # seconds after which a process counts as lost
BEATS = 9  # in that time
LEFT = "left"


@dataclass
class Heard:
    """What the store said last: pulses by rank, how often it answered so far, and whether it hung up."""

    pulses: dict[int, str] = field(default_factory=dict)
    answers: int = 0
    broken: bool = False


@contextmanager
def watched_peers(silence: float = SILENCE) -> Iterator[None]:
    """Ends this process with exit code 1, and one line that names the rank, once another is silent for so long.

    Does nothing in a process that is alone. A process that leaves the context is no longer waited for.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    done, heard = threading.Event(), Heard()
    rank, world = dist.get_rank(), dist.get_world_size()
    beat = threading.Thread(target=_beat, args=(heard, rank, world, silence, done), daemon=True)
    watch = threading.Thread(target=_watch, args=(heard, rank, silence, done), daemon=True)
    beat.start()
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join(silence / BEATS)
        beat.join(silence / BEATS)


def _beat(heard: Heard, rank: int, world: int, silence: float, done: threading.Event) -> None:
    """Tells the store that this process lives, and notes what the others told it, until `done`.

    A call waits without end where the store's process is stopped or its machine has left the network, whatever time
    it is given: a thread of its own counts how long.
    """
    try:
        store, _, _ = next(
            dist.rendezvous("env://", rank=rank, world_size=world)
        )  # own connection: no wait for others
        while not done.wait(silence / BEATS):
            store.set(_key(rank), str(heard.answers))
            keys = {peer: _key(peer) for peer in range(world) if peer != rank}
            heard.pulses = {
                peer: store.get(key).decode() if store.check([key]) else ""  # who has not begun may load its data
                for peer, key in keys.items()
            }
            heard.answers += 1
        store.set(_key(rank), LEFT)
    except RuntimeError:
        heard.broken = True


def _watch(heard: Heard, rank: int, silence: float, done: threading.Event) -> None:
    """Ends this process once another is silent; counted in own ticks, so that a job that slept as a whole goes on.

    A launcher on this machine is not missed: who stops it for a while, as Ctrl-Z does, lets its processes run on.
    """
    launcher_here = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_RANK") == "0"
    answers, unanswered = -1, 0
    pulses: dict[int, str] = {}
    missed: dict[int, int] = {}
    while not done.wait(silence / BEATS):
        if heard.answers == answers:
            gone = heard.pulses.get(0) != LEFT and (heard.broken or not launcher_here)
            unanswered = unanswered + 1 if gone else 0
            if unanswered >= BEATS:
                _end(rank, 0, silence, f", with what its machine, {os.environ['MASTER_ADDR']}, keeps for all")
            continue
        answers, unanswered = heard.answers, 0
        for peer, pulse in heard.pulses.items():
            still = pulse == pulses.get(peer, "") and pulse not in ("", LEFT)
            missed[peer] = missed.get(peer, 0) + 1 if still else 0
            if missed[peer] >= BEATS:
                _end(rank, peer, silence)
        pulses = heard.pulses


def _key(rank: int) -> str:
    return f"popen/pulse/{rank}"


def _end(rank: int, lost: int, silence: float, how: str = "") -> None:
    """Collectives cannot be interrupted: the process ends here."""
    print(
        f"rank {rank}: rank {lost} has been silent for {silence:.0f} s{how}; it, or its machine, is gone: "
        "see what it wrote last and start again, finished work is kept",
        file=sys.stderr,
        flush=True,
    )
    if rank == 0:
        time.sleep(silence / BEATS)  # the others hear from its store whom they lost
    os._exit(1)
