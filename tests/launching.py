"""Two processes under torchrun or `accelerate launch`: in full, or forked, which takes a third of the time.

`launch` is what users type: a launcher and two ranks, each of which imports the libraries, for 15 seconds on a slow
core. `launch_forked` is the same launcher with the same arguments, and its ranks are as much processes of their own
that meet over gloo; but launcher and ranks are forked from one process, started once for each worker of pytest, that
has imported the libraries. Options of torchrun's own do that; the script has to be a file, not a module.

In full are launched: training, by torchrun on two machines (training/test_two_nodes.py); mining, by accelerate
(lvlm/test_two_processes.py); evaluation, by torchrun (eval/test_two_processes.py); and, without a launcher, the demo
(recipes/test_demo.py). A run with a rank that is killed has ranks in full under a forked launcher (`launch_ranks`),
since a forked rank that fails writes down when and torchrun names the first.
"""

import gc
import os
import signal
import subprocess
import sys
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ACCELERATE = ["-m", "accelerate.commands.launch"]
EVERYWHERE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
FORKED = {"PET_RUN_PATH": "1", "PET_START_METHOD": "fork", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # read by torchrun
IN_FULL = {"PET_RUN_PATH": "0", "PET_START_METHOD": "spawn"}  # as where nothing is set
PATIENCE = 900  # seconds

_imported = get_context("forkserver")
_imported.set_forkserver_preload(
    ["popen.training.preference", "popen.lvlm.mining", "popen.lvlm.segmentation", TORCHRUN[1], ACCELERATE[1]]
)


def launch(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python COMMAND` in a folder to its end; each process has one thread."""
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | EVERYWHERE | environment, cwd=folder, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


def launch_forked(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """As `launch`, for a script or a module that has a `main`; what it and its ranks need is imported."""
    with TemporaryDirectory() as written:
        said = [Path(written, name) for name in ("stdout", "stderr")]
        launcher = _imported.Process(
            target=_become, args=(command, str(folder), os.environ | EVERYWHERE | FORKED | environment, said)
        )
        with patch.dict(os.environ, EVERYWHERE):  # of the process that imports, if this call is the first
            launcher.start()
        launcher.join(PATIENCE)
        if launcher.exitcode is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.join()
            raise subprocess.TimeoutExpired(command, PATIENCE, *(file.read_bytes() for file in said))
        return subprocess.CompletedProcess(command, launcher.exitcode, *(file.read_text() for file in said))


def launch_ranks(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """As `launch`, but for the launcher, which is forked: its ranks are started, watched and named as in full."""
    return launch_forked(command, folder, **IN_FULL, **environment)


def _become(command: list[str], folder: str, environment: dict[str, str], said: list[Path]) -> None:
    """Turns a process that was forked into `python COMMAND`, a group of its own with the ranks that it starts."""
    gc.freeze()  # what is imported is no garbage
    os.setpgid(0, 0)
    for stream, file in enumerate(said, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if command[0] == "-m":
        sys.argv = command[1:]
        import_module(command[1]).main()
    else:
        sys.argv = command
        run_path(command[0], run_name="__main__")
