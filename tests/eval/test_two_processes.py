"""Two processes that share a benchmark give, to the last digit, the numbers that one gives."""

import json
import sys

import pytest
import torch

from eval import refcoco
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from tests.launching import ROOT, TORCHRUN, launch

SCENES = 9  # a whole chunk for the first process and a part of one for the second


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """OUT of one process, here, and of two under a launcher."""
    root = tmp_path_factory.mktemp("shared")
    write_dataset([sample(seed) for seed in range(SCENES)], root / "data", "val")
    options = ["--model", str(ROOT / "popen" / "assets" / "popen-tiny"), "--data", str(root / "data")]
    options += ["--dataset", "refcoco", "--max-new-tokens", "24", "--out"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of the two has: sums must be taken in the same order
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["eval.refcoco", *options, str(root / "one")])
            refcoco.main()
    finally:
        torch.set_num_threads(threads)
    done = launch([*TORCHRUN, "-m", "eval.refcoco", *options, str(root / "two")], root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "one", root / "two"


@pytest.mark.parametrize("protocol", ["free", "forced"])
def test_the_rows_are_the_same(runs, protocol):
    one, two = ((folder / f"rows_{protocol}.jsonl").read_text() for folder in runs)
    ids = [json.loads(line)["id"] for line in two.splitlines()]
    assert one == two and ids == sorted(q.id for seed in range(SCENES) for q in sample(seed).questions)


def test_the_numbers_are_the_same(runs):
    one, two = (json.loads((folder / "summary.json").read_text())["results"] for folder in runs)
    assert one == two and one[1]["ciou"] > 0.5
