"""A forked launch is the one that it stands for: what its ranks are told."""

import json
from pathlib import Path

import pytest

from tests.launching import ACCELERATE, ROOT, launch, launch_forked

SCRIPT = """
import json, os, sys
own = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "PYTHONPATH"}
told = {name: value for name, value in os.environ.items() if name in own or name.startswith("ACCELERATE_")}
with open(os.environ["RANK"] + ".json", "w") as file:
    json.dump([__name__, sys.argv[1:], os.getcwd(), told], file)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return str(tmp_path / "script.py")


def test_ranks_are_told_what_a_full_launch_tells_them(script, tmp_path):
    zero2 = str(ROOT / "recipes" / "accelerate" / "zero2.yaml")
    command = [*ACCELERATE, "--config_file", zero2, "--num_processes", "2", script, "0", "--more", "words"]
    found = []
    for start in (launch, launch_forked):
        done = start(command, tmp_path, ACCELERATE_MORE="yes")
        assert done.returncode == 0, done.stderr[-3000:]
        files = [tmp_path / f"{rank}.json" for rank in range(2)]
        found.append([json.loads(file.read_text()) for file in files])
        for file in files:
            file.unlink()
    assert found[0] == found[1]
    name, arguments, folder, told = found[1][1]
    assert (name, arguments, Path(folder)) == ("__main__", ["0", "--more", "words"], tmp_path)
    assert told["RANK"] == told["LOCAL_RANK"] == "1" and told["WORLD_SIZE"] == "2"
    assert told["ACCELERATE_USE_DEEPSPEED"] == "true" and told["ACCELERATE_MORE"] == "yes"
