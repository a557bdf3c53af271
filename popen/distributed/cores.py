"""The cores that a process computes on."""

import os

import torch


def use_all_cores() -> None:
    """Lets a single CPU process use every core; launchers set one thread unless OMP_NUM_THREADS says otherwise."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone and not torch.cuda.is_available() and os.environ.get("OMP_NUM_THREADS") in (None, "1"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(cores or 1)
