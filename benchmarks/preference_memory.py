"""Peak memory of a preference step of ours against that of TRL's DPOTrainer, each in a process of its own.

    python -m benchmarks.preference_memory --out docs/results/bench/preference_memory.json

What a first step adds to what the process holds before it: the allocator's peak on a GPU, the resident set on a CPU.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from statistics import median
from tempfile import TemporaryDirectory

from tqdm.auto import tqdm

from benchmarks.figures import Figure, parser, report
from popen.errors import one_line_errors

SIDES = ("ours", "ours with masks", "TRL")


def step_bytes(side: str, toy: bool, seed: int) -> int:
    """Bytes that a step of one side adds, measured here and now."""
    from benchmarks.preference_pairs import ours, theirs
    from benchmarks.rates import peak_bytes
    from benchmarks.shapes import shape_here

    shape = shape_here(toy)
    with TemporaryDirectory() as folder:
        made = theirs(shape, seed, folder) if side == "TRL" else ours(shape, seed, folder)(side == "ours with masks")
        return peak_bytes(made.step)


def in_own_process(side: str, toy: bool, seed: int) -> int:
    """`step_bytes` in a fresh process.

    Raises:
        ValueError: the process failed; with the last line it wrote.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.preference_memory", "--out", "-", "--side", side]
    command += ["--seed", str(seed), *(["--toy"] if toy else [])]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once, on both sides
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ValueError(f"{side}: the process ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])["bytes"]


def ratio(over: list[int], under: list[int], **more) -> Figure:
    """Peak of one side over the other's, in its quartiles over runs."""
    found = sorted(o / u for o, u in zip(over, under, strict=True))
    quarter = len(found) // 4
    return Figure(median=median(found), low=found[quarter], high=found[-1 - quarter], turns=len(found), **more)


def main() -> None:
    made = parser(__doc__, turns=2)
    made.add_argument("--side", choices=SIDES, help="only measure this one here, and print its bytes")
    args = made.parse_args()
    if args.side:
        print(json.dumps({"bytes": step_bytes(args.side, args.toy, args.seed)}))
        return
    peaks: dict[str, list[int]] = {side: [] for side in SIDES}
    for _ in tqdm(range(args.turns), desc="preference memory", unit="turn"):
        for side in SIDES:
            peaks[side].append(in_own_process(side, args.toy, args.seed))
    figures = [
        ratio(
            peaks[side], peaks["TRL"], what=f"peak memory of a preference step: {side} / TRL", at_most=bar,
            notes={"megabytes": {name: median(peaks[name]) / 1e6 for name in (side, "TRL")}},
        )
        for side, bar in (("ours", 0.6), ("ours with masks", None))
    ]  # fmt: skip
    from benchmarks.shapes import shape_here

    report(args, figures, shape=asdict(shape_here(args.toy)))


if __name__ == "__main__":
    with one_line_errors("benchmarks.preference_memory"):
        main()
