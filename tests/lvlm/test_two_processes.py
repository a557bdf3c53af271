"""Two processes mine what one mines, to the last byte, also where one of them was killed on the way."""

import signal
import time

import pytest
import torch

from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from popen.lvlm.loading import load_model
from popen.lvlm.mining import MiningArguments, mine
from tests.launching import ACCELERATE, ROOT, TORCHRUN, launch, launch_forked, launch_ranks

TINY = ROOT / "popen" / "assets" / "popen-tiny"
SCENES = 5  # three shards of two: the processes have unequal shares
SETTINGS = {"candidates": 2, "views": "rectangle", "shard_rows": 2, "batch_size": 8}
KILLED = """
import os, runpy, signal, sys, time
from popen.lvlm import mining

work = mining._write_shard

def killed(folder, *rest):
    if os.environ["RANK"] == "1":
        folder.with_suffix(".tmp").mkdir(parents=True)  # in the middle of its shard
        while not folder.with_name("00000000").is_dir():  # of the other
            time.sleep(0.1)
        open("died", "w").write(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    work(folder, *rest)

mining._write_shard = killed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

APART = """
import os, sys
from pathlib import Path
from popen.data.schema import load_split
from popen.distributed.ranks import launched
from popen.errors import one_line_errors
from popen.lvlm.mining import MiningArguments, mine

model, data = sys.argv[1:]
with one_line_errors("mine.py"), launched() as own:
    os.makedirs(f"machine{own.rank}")
    os.chdir(f"machine{own.rank}")
    rows = load_split(data, "train")
    mine(None, None, rows, range(len(rows)), model, "out", MiningArguments(), own)  # without a model nothing is mined
"""


def options(root):
    given = {"model_name_or_path": TINY, "dataset": root / "data", "output_dir": root / "two"} | SETTINGS
    return [str(ROOT / "recipes" / "mine.py"), *(f"--{name}={value}" for name, value in given.items())]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with a data set, and what one process mines from it."""
    root = tmp_path_factory.mktemp("mining")
    rows = write_dataset([sample(seed) for seed in range(SCENES)], root / "data", "train")
    model, processor = load_model(TINY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of the two has: sums must be taken in the same order
    try:
        mine(model.eval(), processor, rows, range(SCENES), TINY, root / "one", MiningArguments(**SETTINGS))
    finally:
        torch.set_num_threads(threads)
    return root


@pytest.fixture(scope="module")
def killed(one):
    """What is left of a run whose second process was killed, how it ended, and so many seconds later."""
    (one / "killed.py").write_text(KILLED)
    done = launch_ranks([*TORCHRUN, str(one / "killed.py"), *options(one)], one)
    seconds = time.time() - float((one / "died").read_text())
    return sorted(f.name for f in (one / "two").rglob("*")), done, seconds


def test_a_killed_process_ends_the_other_and_is_named(killed):
    left, done, seconds = killed
    assert done.returncode != 0 and seconds < 60
    cause = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1 " in cause and f"exitcode  : -{signal.SIGKILL.value} " in cause, done.stderr[-3000:]
    assert "[rank0]: Traceback" not in done.stderr
    assert {"00000000", "00000002.tmp"} <= set(left) and not {"mining.json", "text"} & set(left)


def test_the_bytes_do_not_depend_on_the_number_of_processes(one, killed):
    """Nor on the kill: what the two go on with ends as one process's run."""
    done = launch([*ACCELERATE, "--multi_gpu", "--num_processes", "2", "-q", *options(one)], one)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("kept of") == 2 and "mining: 100%" in done.stderr  # one of them speaks
    found = [
        {f.relative_to(one / n): f.read_bytes() for f in (one / n).rglob("*") if f.is_file()} for n in ("one", "two")
    ]
    assert found[0] == found[1] and len(found[0]) > 12


def test_machines_that_share_no_folder_are_refused_before_the_work(one, tmp_path):
    (tmp_path / "apart.py").write_text(APART)
    done = launch_forked([*TORCHRUN, str(tmp_path / "apart.py"), str(TINY), str(one / "data")], tmp_path)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("mine.py: ")]
    assert len(said) == 1 and said[0].startswith("mine.py: rank 0: out: what rank 1, on ")
    assert "give an output_dir that all machines share" in said[0]
    assert not [file for n in (0, 1) for file in (tmp_path / f"machine{n}" / "out").iterdir()]
