"""Two processes that share a batch must take the steps that one process takes with the whole of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from popen.data.scene_questions import sample
from popen.data.schema import write_dataset

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import json, os, sys
from popen.data.schema import load_split
from popen.lvlm.loading import load_model
from popen.training import SegmentationSFTTrainer, SFTArguments
from popen.training.callbacks import finish

root, out, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
args = SFTArguments(
    output_dir=out, max_steps=2, per_device_train_batch_size=batch, learning_rate=1e-3, logging_steps=1, seed=0,
    save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
)
model, processor = load_model(root + "/model", attn_implementation="eager")
trainer = SegmentationSFTTrainer(model, args, train_dataset=load_split(root + "/data", "train"), processor=processor)
trainer.train()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    summary = {"logs": logs, "processes": trainer.accelerator.num_processes}
    open(out + "/summary.json", "w").write(json.dumps(summary))
finish(trainer)  # as the recipes end: a process that leaves its group alone may be aborted
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    """Folders that one process with 4 rows a step and two with 2 each have written."""
    root = tmp_path_factory.mktemp("two")
    for part in tiny:
        part.save_pretrained(root / "model")
    scenes = [sample(seed) for seed in range(8)]  # of one to five questions: the shares of the processes differ
    uneven = [replace(scene, questions=scene.questions[: 1 + 2 * i % 5]) for i, scene in enumerate(scenes)]
    write_dataset(uneven, root / "data", "train")
    (root / "train.py").write_text(SCRIPT)
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for name, launch, batch in (("one", [], "4"), ("two", two, "2")):
        (root / name).mkdir()
        command = [sys.executable, *launch, str(root / "train.py"), str(root), str(root / name), batch]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    return root / "one", root / "two"


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_there_were_one_and_two_processes(runs):
    assert [summary(folder)["processes"] for folder in runs] == [1, 2]


def test_the_losses_agree(runs):
    one, two = ([entry["loss"] for entry in summary(folder)["logs"]] for folder in runs)
    assert len(one) == 2 and two == pytest.approx(one, abs=1e-4)


def test_the_gradients_agree(runs):
    one, two = ([entry["grad_norm"] for entry in summary(folder)["logs"]] for folder in runs)
    assert two == pytest.approx(one, rel=1e-3)


def test_the_weights_agree(runs):
    one, two = (load_file(folder / "model.safetensors") for folder in runs)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_the_logged_parts_are_those_of_the_whole_batch(runs):
    """What is logged beside the loss is not one process's share of it."""
    one, two = (summary(folder)["logs"][0] for folder in runs)
    for part in ("text/ce", "seg/bce", "seg/dice", "seg/quality"):
        assert two[part] == pytest.approx(one[part], abs=1e-3), part
