"""A process that falls silent ends the others, whatever they wait for, and is named.

A launcher ends the peers of a process that dies on its own machine. This is for all it does not see: another machine
that is gone, a process that is stopped. Each writes its pulse to the launcher's store and reads the others'.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

SILENCE = 45.0  # seconds after which a process counts as lost
BEATS = 9  # in that time
LEFT = "left"


@contextmanager
def watched_peers(silence: float = SILENCE) -> Iterator[None]:
    """Ends this process with exit code 1, and one line that names the rank, once another is silent for so long.

    Does nothing in a process that is alone. A process that leaves the context is no longer waited for.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    done = threading.Event()
    rank, world = dist.get_rank(), dist.get_world_size()
    store, _, _ = next(dist.rendezvous("env://", rank=rank, world_size=world))  # an own connection: no wait for others
    thread = threading.Thread(target=_watch, args=(store, rank, world, silence, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(silence / BEATS)


def _watch(store: dist.Store, rank: int, world: int, silence: float, done: threading.Event) -> None:
    """Beats and listens until `done`; silence is counted in own beats, so a job that slept as a whole goes on."""
    pulses = {peer: "" for peer in range(world) if peer != rank}
    missed = dict.fromkeys(pulses, 0)
    beat = 0
    try:
        while not done.wait(silence / BEATS):
            beat += 1
            store.set(_key(rank), str(beat))
            for peer, last in pulses.items():
                pulse = store.get(_key(peer)).decode() if store.check([_key(peer)]) else ""
                still = pulse == last and pulse not in ("", LEFT)  # who has not begun may be loading its data
                missed[peer] = missed[peer] + 1 if still else 0
                pulses[peer] = pulse
                if missed[peer] >= BEATS:
                    _end(rank, peer, silence)
        store.set(_key(rank), LEFT)
    except RuntimeError:  # the store ends with the launcher, which ends its processes itself
        return


def _key(rank: int) -> str:
    return f"popen/pulse/{rank}"


def _end(rank: int, lost: int, silence: float) -> None:
    """Collectives cannot be interrupted: the process ends here."""
    print(
        f"rank {rank}: rank {lost} has been silent for {silence:.0f} s; it, or its machine, is gone: "
        "see what it wrote last and start again, finished work is kept",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
