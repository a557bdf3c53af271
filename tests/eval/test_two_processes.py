"""Two processes that share a benchmark give, to the last digit, the numbers that one gives."""

import json
import runpy
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch

from eval import pope, refcoco, segmentation
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from tests.launching import ROOT, TORCHRUN, launch, launch_forked, launch_ranks

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
OTHERS = """
import sys
from contextlib import nullcontext
from eval import pope, segmentation
from popen.distributed.ranks import launched
from popen.recipe import run

data, out = sys.argv[1:]
segmentation.CHUNK = pope.CHUNK = 2  # as many of them as if there were many pictures
given = ["--model", %r, "--data", data, "--split", "val", "--max-rows", "5"]
with launched() as ranks:  # once for both
    segmentation.launched = pope.launched = lambda: nullcontext(ranks)
    sys.argv = ["eval.segmentation", *given, "--out", out, "--calibration-split", "val2"]
    run(segmentation.main, segmentation.SegmentationArguments)
    sys.argv = ["eval.pope", *given, "--out", out + "/pope.json", "--each", "1"]
    pope.main()
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


@pytest.fixture(scope="module")
def others(runs):
    """What one process, here, and two write that are started with `eval.segmentation` and then `eval.pope`."""
    root = runs[0].parent
    write_dataset([sample(seed) for seed in range(2)], root / "data", "val2")
    (root / "others.py").write_text(OTHERS % TINY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["others.py", str(root / "data"), str(root / "one_more")])
            for module in (pope, segmentation):
                patch.setattr(module, "CHUNK", module.CHUNK)
                patch.setattr(module, "launched", module.launched)
            runpy.run_path(str(root / "others.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    both = [str(root / "others.py"), str(root / "data"), str(root / "two_more")]
    done = launch_forked([*TORCHRUN, *both], root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "one_more", root / "two_more"


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
    done = launch_ranks([*TORCHRUN, str(tmp_path / "killed.py"), *options], tmp_path)
    assert done.returncode != 0 and time.time() - float((tmp_path / "died").read_text()) < 60
    cause = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1 " in cause and f"exitcode  : -{signal.SIGKILL.value} " in cause, done.stderr[-3000:]
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("file", ["rows.jsonl", "summary.json", "pope.json"])
def test_evaluations_on_the_schema_share_too(others, file):
    one, two = ((folder / file).read_bytes() for folder in others)
    assert one == two and len(one) > 100
