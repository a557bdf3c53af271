"""Two processes tune with preferences as one does, and a resumed run ends with the same bytes."""

import json
import runpy
import sys

import pytest

from popen.data.scene_questions import sample
from tests.launching import TORCHRUN, launch_forked
from tests.mined import mined_folder

SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
from popen.data.schema import load_split
from popen.lvlm.loading import load_model
from popen.lvlm.mining import load_mined
from popen.training.callbacks import finish, resume_path
from popen.training.preference import PreferenceArguments, PreferenceStreams, PreferenceTrainer

root, out = sys.argv[1:]
several = "WORLD_SIZE" in os.environ
text, seg, _ = load_mined(root + "/mined")
streams = PreferenceStreams(text, seg, load_split(root + "/data", "train"))

def train(name, **options):
    args = PreferenceArguments(
        output_dir=f"{out}/{name}", max_steps=3, per_device_train_batch_size=2 if several else 4, learning_rate=1e-3,
        seed=0, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="steps",
        save_steps=1, ddp_backend="gloo" if several else None, **options,
    )
    model, processor = load_model(root + "/model", attn_implementation="eager")
    trainer = PreferenceTrainer(model.train(), args, train_dataset=streams, processor=processor)
    trainer.train(resume_from_checkpoint=resume_path(args))
    return trainer

trainer = train("whole")
trainer.save_model()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    summary = {"processes": trainer.accelerator.num_processes, "logs": logs}
    Path(f"{out}/whole.json").write_text(json.dumps(summary))
if several:
    if trainer.is_world_process_zero():  # what a run leaves that was killed after its first step
        shutil.copytree(f"{out}/whole/checkpoint-1", f"{out}/resumed/checkpoint-1")
    trainer.accelerator.wait_for_everyone()
    finish(train("resumed", resume_from_checkpoint=True))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, taught):
    """Folders of one process, here, and of two."""
    root = tmp_path_factory.mktemp("preference")
    mined_folder(root, *taught, [sample(seed) for seed in range(8)])
    (root / "train.py").write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", str(root), str(root / "one")])
        runpy.run_path(str(root / "train.py"), run_name="__main__")
    done = launch_forked([*TORCHRUN, str(root / "train.py"), str(root), str(root / "two")], root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "one", root / "two"


def test_the_losses_agree(runs):
    """Of words, of both kinds of preferences and of masks; each is the mean over the whole batch."""
    one, two = (json.loads((folder / "whole.json").read_text()) for folder in runs)
    assert (one["processes"], two["processes"]) == (1, 2) and len(one["logs"]) == len(two["logs"]) == 3
    parts = {"loss", "grad_norm", "text/loss", "seg/loss", "anchor/ce", "anchor/bce", "anchor/dice"}
    for first, second in zip(one["logs"], two["logs"], strict=True):
        for part in parts:
            assert second[part] == pytest.approx(first[part], abs=1e-3, rel=1e-3), part


def test_the_resumed_run_has_the_same_bytes(runs):
    whole, resumed = ((runs[1] / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
