"""Two processes against one, each with one thread: evaluation, and mining where it is asked for; the same bytes.

    python -m benchmarks.ranks --out docs/results/bench/ranks.json --jobs evaluation mining

Start-up (imports, loading, joining the processes) counts: on few pictures it is most of the time. Each process has one
core: alone it would take all of them, whatever the number of threads it is told.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import popen
from benchmarks.figures import figure, parser, report
from benchmarks.turns import take_turns
from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from popen.errors import one_line_errors

ROOT = Path(popen.__file__).parent.parent
MODEL = ROOT / "popen" / "assets" / "popen-tiny"
# without this each process would compile what it imports; the Makefile unsets it, too
KEEPS_FROM_CACHING = "PYTHONDONTWRITEBYTECODE"
IMPORTED = "import torch.distributed.run, eval.hallucination, popen.lvlm.mining, popen.recipe"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launcher(processes: int) -> list[str]:
    """Torch's own: `accelerate launch` starts one process on a machine without a GPU, however many it is asked for."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def evaluation(processes: int, data: str, out: Path) -> list[str]:
    """The command that scores popen-tiny on a split."""
    return [
        *launcher(processes), "-m", "eval.hallucination", "--model", str(MODEL), "--data", data, "--split", "train",
        "--out", str(out),
    ]  # fmt: skip


def mining(processes: int, data: str, out: Path) -> list[str]:
    """The command that mines the split."""
    return [
        *launcher(processes), str(ROOT / "recipes" / "mine.py"), "--model_name_or_path", str(MODEL), "--dataset",
        data, "--output_dir", str(out), "--shard_rows", "8",
    ]  # fmt: skip


JOBS = {"evaluation": evaluation, "mining": mining}
WRITTEN = {"evaluation": "rows_*.jsonl", "mining": "*/*.arrow"}


def started(command: list[str], cores: int) -> None:
    """Runs a command in this project with one thread a process, on so many cores.

    Raises:
        DataError: it failed; with its last line.
    """
    given = {name: value for name, value in os.environ.items() if name != KEEPS_FROM_CACHING}
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])  # what is started inherits it
    try:
        done = subprocess.run(command, env=given | ONE_THREAD | path, capture_output=True, text=True, check=False)
    finally:
        os.sched_setaffinity(0, before)
    if done.returncode:
        raise DataError(f"{' '.join(command[1:6])} …: ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def digest(folder: Path, pattern: str) -> str:
    """One hash of the files that a run wrote.

    Raises:
        DataError: there are none.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise DataError(f"{folder}: no {pattern} in it; the run wrote nothing to compare")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def turn(job: Callable, processes: int, data: str, root: Path, numbers) -> Callable[[], None]:
    """Runs a job into a folder of its own."""

    def run() -> None:
        started(job(processes, data, root / f"{job.__name__}-{processes}-{next(numbers)}"), processes)

    return run


def main() -> None:
    made = parser(__doc__, turns=2)
    made.add_argument("--jobs", nargs="+", choices=JOBS, default=["evaluation"])
    made.add_argument("--pictures", type=int, default=192)
    args = made.parse_args()
    if not hasattr(os, "sched_setaffinity"):
        raise DataError("one core for each process: this system cannot give a process a core; run it on Linux")
    pictures = 8 if args.toy else args.pictures
    figures = []
    with TemporaryDirectory() as folder:
        root, data = Path(folder), f"{folder}/data"
        write_dataset((sample(args.seed + k) for k in range(pictures)), data, "train")
        if not args.toy:
            started([sys.executable, "-c", IMPORTED], 1)  # compiled once, for whoever comes first
        for name in args.jobs:
            numbers = iter(range(1000))
            sides = {f"{n} processes": turn(JOBS[name], n, data, root, numbers) for n in (1, 2)}
            taken = take_turns(sides, args.turns, name, warm_up=0)
            written = {digest(out, WRITTEN[name]) for out in root.glob(f"{name}-*")}
            if len(written) != 1:
                raise DataError(f"{name}: {len(written)} different outputs of one and two processes; they must be one")
            what = f"{name} of {pictures} pictures: one process with one thread / two"
            own = figure(what, taken, "1 processes", "2 processes", at_least=1.7, limit="2")
            own.notes["byte_identical"] = True
            figures.append(own)
    report(args, figures, pictures=pictures)


if __name__ == "__main__":
    with one_line_errors("benchmarks.ranks"):
        main()
