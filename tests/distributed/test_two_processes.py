"""Two processes: one result for both, one line for an error, and a process that falls silent is named."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
SCRIPT = """
import ctypes, os, time
from popen.distributed import ranks
from popen.distributed.pulse import watched_peers
from popen.errors import one_line_errors

def refuse():
    raise ValueError("no such folder")

with one_line_errors("script"):
    with ranks.launched() as own:
        assert own.first(lambda: f"by {own.rank}") == "by 0"
        assert own.gather(own.rank) == ([0, 1] if own.rank == 0 else [])
        with watched_peers(silence=1.8):
            if os.environ["CASE"] == "stuck":
                time.sleep(1)
                if own.rank == 1:
                    ctypes.PyDLL(None).sleep(900)  # a call into C that keeps all of Python's threads waiting
                own.gather(None)  # for twelve hours
            if own.rank == 0:
                time.sleep(4)  # who has left is not missed
        own.first(refuse)
"""


def run(tmp_path, case):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CASE": case}
    command = [*TORCHRUN, str(tmp_path / "script.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    return done.stderr


def test_an_error_of_the_first_ends_all_and_is_said_once(tmp_path):
    stderr = run(tmp_path, "refused")
    assert stderr.count("script: rank 0: no such folder") == 1
    assert "silent" not in stderr and "[rank1]" not in stderr


def test_a_process_that_falls_silent_is_named(tmp_path):
    """It neither ends nor answers: no launcher sees that, and a collective waits for it."""
    assert "rank 0: rank 1 has been silent for 2 s" in run(tmp_path, "stuck")
