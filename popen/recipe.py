"""Starts a recipe: YAML and command line to dataclasses, errors to one line. Or runs scripts and notes their cost."""

import json
import os
import resource
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from trl import TrlParser

from popen.errors import one_line_errors


def run(main: Callable, *argument_classes: type) -> None:
    """Parses `--config FILE.yaml` and overrides into the classes and calls `main` with them.

    An unknown key of the YAML or the command line is an error that names it.
    """
    with one_line_errors(Path(sys.argv[0]).name):
        code = main(*TrlParser(argument_classes).parse_args_and_config())
    if code:
        raise SystemExit(code)


def run_forked(arguments: list[str], folder: Path, imported: Sequence[str]) -> int:
    """Runs `python ARGUMENTS` in `folder`, forked from this process, and returns its exit code.

    This process imports `imported` once, which takes longer than many a script; it must not have computed with torch
    before, whose threads do not survive a fork.
    """
    for module in imported:
        import_module(module)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        _become(arguments, folder)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def several_gpus() -> bool:
    """Whether a launcher has something to share out; CUDA, which no fork survives, is not started."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    return import_module("torch").cuda.device_count() > 1


def note_cost(file: Path, seconds: float) -> None:
    """Adds the seconds of this call to those of earlier ones and keeps the largest step's memory, in GiB."""
    before = json.loads(file.read_text()) if file.exists() else {"seconds": 0.0, "peak_gib": 0.0}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # Linux counts in KiB
    cost = {"seconds": before["seconds"] + seconds, "peak_gib": max(before["peak_gib"], peak)}
    file.write_text(json.dumps(cost) + "\n")


def _become(arguments: list[str], folder: Path) -> NoReturn:
    """Ends this process as the script, or the module (-m), that the arguments name."""
    module = arguments[0] == "-m"
    sys.argv = arguments[1:] if module else arguments
    sys.path[:1] = [str(folder)] if module else [str(folder / Path(arguments[0]).parent), str(folder)]
    if module:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")
    raise SystemExit(0)
