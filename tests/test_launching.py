"""A forked launch is the one that it stands for: what its ranks are told."""

import json
from pathlib import Path

import pytest

from tests.launching import ACCELERATE, ROOT, launch, launch_forked

SCRIPT = """
import json, os, sys
own = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "PYTHONPATH"}
told = {name: value for name, value in os.environ.items() if name in own or name.startswith("ACCELERATE_")}
print(json.dumps([__name__, sys.argv[1:], os.getcwd(), told]), flush=True)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


def test_ranks_are_told_what_a_full_launch_tells_them(script, tmp_path):
    zero2 = str(ROOT / "recipes" / "accelerate" / "zero2.yaml")
    command = [*ACCELERATE, "--config_file", zero2, "--num_processes", "2", script, "0", "--more", "words"]
    full, forked = (start(command, tmp_path, ACCELERATE_MORE="yes") for start in (launch, launch_forked))
    assert full.returncode == forked.returncode == 0, forked.stderr[-3000:]
    lines = [sorted(line for line in done.stdout.splitlines() if "__main__" in line) for done in (full, forked)]
    assert lines[0] == lines[1] and len(lines[0]) == 2  # beside a warning of DeepSpeed's with the time
    name, arguments, folder, told = json.loads(lines[1][1])
    assert (name, arguments, Path(folder)) == ("__main__", ["0", "--more", "words"], tmp_path)
    assert told["RANK"] == told["LOCAL_RANK"] == "1" and told["WORLD_SIZE"] == "2"
    assert told["ACCELERATE_USE_DEEPSPEED"] == "true" and told["ACCELERATE_MORE"] == "yes"
