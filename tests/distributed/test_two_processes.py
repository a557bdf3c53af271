"""Two processes: one result for both, one line for an error; one that is killed or falls silent is named."""

import signal
import time

import pytest

from tests.launching import TORCHRUN, launch_forked, launch_ranks

SCRIPT = """
import ctypes, os, signal, time
from popen.distributed import ranks
from popen.distributed.pulse import watched_peers
from popen.errors import one_line_errors

def refuse():
    raise ValueError("no such folder")

with one_line_errors("script"):
    with ranks.launched() as own:
        assert own.first(lambda: f"by {own.rank}") == "by 0"
        assert own.gather(own.rank) == ([0, 1] if own.rank == 0 else [])
        if os.environ["CASE"] == "killed":
            if own.rank == 1:
                with open("died", "w") as died:
                    died.write(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)
            own.gather(None)  # for twelve hours
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

# Two processes without a launcher: rank 0 keeps the store, as its machine does for all others.
ALONE = """
import os, signal, socket, sys, time
from datetime import timedelta
import torch.distributed as dist
from popen.distributed.pulse import watched_peers

fault = signal.Signals[sys.argv[1]]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
ranks = []
for rank in ("0", "1"):
    os.environ["RANK"] = rank
    ranks.append(os.fork())
    if not ranks[-1]:
        dist.init_process_group("gloo", timeout=timedelta(hours=12))
        with watched_peers(silence=1.8):
            time.sleep(1)
            if rank == "0":
                os.kill(os.getpid(), fault)
            time.sleep(15)  # computes, and asks nobody for anything
        os._exit(0)
began = time.time()
code = os.waitstatus_to_exitcode(os.waitpid(ranks[1], 0)[1])
print(f"ended with {code} after {time.time() - began:.1f} s", flush=True)
os.kill(ranks[0], signal.SIGKILL)
"""


def said(start, tmp_path, case):
    """What two processes, started by `launch_forked` or `launch_ranks`, write to stderr before they fail."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = start([*TORCHRUN, str(tmp_path / "script.py")], tmp_path, CASE=case)
    assert done.returncode != 0
    return done.stderr


def test_an_error_of_the_first_ends_all_and_is_said_once(tmp_path):
    stderr = said(launch_forked, tmp_path, "refused")
    assert stderr.count("script: rank 0: no such folder") == 1
    assert "silent" not in stderr and "[rank1]" not in stderr


def test_a_killed_process_ends_the_other_and_is_named(tmp_path):
    stderr = said(launch_ranks, tmp_path, "killed")
    assert time.time() - float((tmp_path / "died").read_text()) < 60
    cause = stderr.partition("Root Cause")[2]
    assert "rank      : 1 " in cause and f"exitcode  : -{signal.SIGKILL.value} " in cause, stderr[-3000:]


def test_a_process_that_falls_silent_is_named(tmp_path):
    """It neither ends nor answers: no launcher sees that, and a collective waits for it."""
    assert "rank 0: rank 1 has been silent for 2 s" in said(launch_forked, tmp_path, "stuck")


@pytest.mark.parametrize("fault", ["SIGSTOP", "SIGKILL"])
def test_the_one_that_keeps_the_store_is_named_too(tmp_path, fault):
    """Its store then answers nobody, or hangs up, and no launcher is there to see it."""
    (tmp_path / "script.py").write_text(ALONE)
    done = launch_forked([str(tmp_path / "script.py"), fault], tmp_path)
    assert "rank 1: rank 0 has been silent for 2 s, with what its machine, 127.0.0.1, keeps for all" in done.stderr
    assert done.stdout.startswith("ended with 1 after")
