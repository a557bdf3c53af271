"""Two processes that share a benchmark give, to the last digit, the numbers that one gives."""

import json
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch

from eval import refcoco
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from tests.launching import ROOT, TORCHRUN, launch

SCENES = 9  # a whole chunk for the first process and a part of one for the second
TINY = str(ROOT / "popen" / "assets" / "popen-tiny")
KILLED = """
import os, signal, time
from eval import benchmark, refcoco

whole = benchmark.share

def killed(ranks, count):
    for chunk in whole(ranks, count):
        if ranks.rank == 1:
            open("died", "w").write(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        yield chunk

benchmark.share = killed
refcoco.main()
"""


def of_refcoco(scene):
    """A scene under ids as RefCOCO's converter gives them."""
    return replace(scene, questions=tuple(replace(q, id=f"refcoco/{q.id}") for q in scene.questions))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """OUT of one process, here, and of two under a launcher."""
    root = tmp_path_factory.mktemp("shared")
    write_dataset([of_refcoco(sample(seed)) for seed in range(SCENES)], root / "data", "val")
    options = ["--model", TINY, "--data", str(root / "data")]
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
    assert one == two and ids == sorted(q.id for seed in range(SCENES) for q in of_refcoco(sample(seed)).questions)


def test_the_numbers_are_the_same(runs):
    one, two = (json.loads((folder / "summary.json").read_text())["results"] for folder in runs)
    assert one == two and one[1]["ciou"] > 0.5


def test_a_killed_process_ends_the_other_is_named_and_nothing_is_written(runs, tmp_path):
    data = str(runs[0].parent / "data")
    (tmp_path / "killed.py").write_text(KILLED)
    options = ["--model", TINY, "--data", data, "--dataset", "refcoco", "--out", str(tmp_path / "out")]
    done = launch([*TORCHRUN, str(tmp_path / "killed.py"), *options], tmp_path)
    assert done.returncode != 0 and time.time() - float((tmp_path / "died").read_text()) < 60
    cause = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1 " in cause and f"exitcode  : -{signal.SIGKILL.value} " in cause, done.stderr[-3000:]
    assert not list((tmp_path / "out").glob("*"))
