"""What the machine could do: its measured matmul rate, the FLOPs of a piece of work, and its peak memory."""

import resource
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.turns import timed
from popen.training.activations import kept_for_backward


def matmul_rate(dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a square matmul on this machine's device, the best of five."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = size or (8192 if device == "cuda" else 1024)
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    left @ right
    return 2 * size**3 / min(timed(lambda: left @ right).wall for _ in range(5))


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matmuls and convolutions of a call.

    On a CPU, torch does not count fused attention: a few per cent at these lengths.
    """
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm: addmm_flops}) as counter:
        work()
    return counter.get_total_flops()


def gpu_flops(ways: dict[str, Callable[[], object]]) -> dict[str, int]:
    """`flops` of each way on a GPU; empty on a CPU, where counting an answer's many small calls takes minutes."""
    return {name: flops(way) for name, way in ways.items()} if torch.cuda.is_available() else {}


def addmm_flops(added, left, right, *others, **settings) -> int:
    """Of `addmm` by its operands' shapes; torch's own formula refuses the `out_dtype` that TRL's kernels ask for."""
    rows, inner = left
    return 2 * rows * inner * right[-1]


def speeds(work: int, tokens: int, seconds: float, rate: float) -> dict[str, float]:
    """Tokens per second, and what share of the matmul rate a piece of work of so many FLOPs reached."""
    return {"flops": work, "tokens_per_s": tokens / seconds, "share_of_matmul_rate": work / seconds / rate}


def peak_bytes(work: Callable[[], object]) -> int:
    """How far memory rises above what is held before a call: the allocator's on a GPU, the process's on a CPU.

    On a CPU, use a fresh process: what an earlier call gave back to the allocator is not counted again.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    forget_peak()
    before = process_peak()
    work()
    return process_peak() - before


def allocated_peak(work: Callable[[], object]) -> int:
    """The most bytes of tensors that a call holds at once beyond those held before it, in any process.

    As `peak_bytes`, without what libraries take beside torch's allocator.
    """
    if torch.cuda.is_available():
        return peak_bytes(work)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events), default=0)


def kept_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, each storage once."""
    return kept_for_backward(forward, own=set())[0]


def forget_peak() -> None:
    """Sets this process's peak memory to what it holds now, where the system lets it (Linux)."""
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")


def process_peak() -> int:
    """The most bytes this process has held; on Linux since `forget_peak`, which getrusage does not heed."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (own for own in status.read_text().splitlines() if own.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
