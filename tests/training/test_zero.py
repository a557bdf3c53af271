"""DeepSpeed's engine on two processes: ZeRO-2 and ZeRO-3 take the steps of one process, skip one together, and resume
to the byte."""

import json
import runpy
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from popen.data.scene_questions import sample
from tests.launching import ACCELERATE, ROOT, launch_forked
from tests.mined import mined_folder

STAGES = (2, 3)
SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
from transformers import set_seed
from popen.data.schema import load_split
from popen.lvlm import label_logps
from popen.lvlm.loading import load_model
from popen.lvlm.mining import load_mined
from popen.training import SegmentationSFTTrainer, SFTArguments
from popen.training.callbacks import finish, resume_path
from popen.training.lora import LoraArguments, with_lora
from popen.training.preference import PreferenceArguments, PreferenceStreams, PreferenceTrainer
from tests.training.spoiled_run import spoiled_run

root, out = sys.argv[1:]
several = "WORLD_SIZE" in os.environ
if several:
    import deepspeed  # gloo does what its kernel for memory shared on a CPU would, which takes minutes to compile
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # several pieces of tokens at a time, not equally many on both: under ZeRO-3 each gathers the output embedding
    label_logps.LOGITS_AT_ONCE = 2**14
common = {
    "learning_rate": 1e-3, "seed": 0, "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2 if several else 4,
}
rows = load_split(root + "/data", "train")

def train(name, arguments, kind, streams, lora=False, last=False, **options):
    args = arguments(output_dir=f"{out}/{name}", max_steps=2, **(common | options))
    set_seed(0)
    model, processor = load_model(root + "/model", attn_implementation="eager")
    model = with_lora(model, LoraArguments(use_peft=True, lora_dropout=0.0)) if lora else model
    trainer = kind(model.train(), args, train_dataset=streams, processor=processor)
    trainer.train(resume_from_checkpoint=resume_path(args))
    if last:
        finish(trainer)  # as the recipes end
    else:
        trainer.save_model()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        engine = type(trainer.model_wrapped).__name__ if not last else ""
        summary = {"processes": trainer.accelerator.num_processes, "engine": engine, "logs": logs}
        Path(f"{out}/{name}.json").write_text(json.dumps(summary))
    trainer.accelerator.wait_for_everyone() if not last else None
    return trainer

sft = SFTArguments, SegmentationSFTTrainer, rows
trainer = train("sft", *sft, save_strategy="steps", save_steps=1)
if several and trainer.is_world_process_zero():  # what a run leaves that was killed after its first step
    shutil.copytree(f"{out}/sft/checkpoint-1", f"{out}/resumed/checkpoint-1")
if several:
    trainer.accelerator.wait_for_everyone()
    train("resumed", *sft, save_strategy="steps", save_steps=1, resume_from_checkpoint=True)
    spoiled_run(root, out, "faults", **common)
    if out.endswith("zero2"):
        spoiled_run(root, out, "faults_bf16", bf16=True, **common)
text, seg, _ = load_mined(root + "/mined")
preferences = PreferenceArguments, PreferenceTrainer, PreferenceStreams(text, seg, rows)
if not out.endswith("zero3"):  # PEFT 0.21 gathers the rows of tokens that it trains on CUDA alone
    train("adapters", *preferences, lora=True, save_strategy="no")
train("preference", *preferences, last=True, save_strategy="no")
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, taught):
    """A folder with a model, a data set, preferences mined from it, and what one process makes of them."""
    root = tmp_path_factory.mktemp("zero")
    scenes = [sample(seed) for seed in range(8)]  # of one to five questions: the shares of the processes differ
    uneven = [replace(scene, questions=scene.questions[: 1 + 2 * i % 5]) for i, scene in enumerate(scenes)]
    mined_folder(root, *taught, uneven)
    (root / "train.py").write_text(SCRIPT)
    for stage in STAGES:
        shipped = yaml.safe_load((ROOT / "recipes" / "accelerate" / f"zero{stage}.yaml").read_text())
        here = {"use_cpu": True, "mixed_precision": "no", "num_processes": 2}
        (root / f"zero{stage}.yaml").write_text(yaml.safe_dump(shipped | here))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", str(root), str(root / "one")])
        runpy.run_path(str(root / "train.py"), run_name="__main__")
    return root


@pytest.fixture(scope="module", params=STAGES)
def runs(root, request):
    """Folders of one process, and of two with a stage of ZeRO."""
    stage = f"zero{request.param}"
    config = ["--config_file", str(root / f"{stage}.yaml")]
    done = launch_forked([*ACCELERATE, *config, str(root / "train.py"), str(root), str(root / stage)], root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "one", root / stage


def summary(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_the_engine_is_deepspeeds(runs):
    one, several = (summary(folder, "sft") for folder in runs)
    assert (one["processes"], several["processes"]) == (1, 2)
    assert (one["engine"], several["engine"]) == ("PopenForReasoningSegmentation", "DeepSpeedEngine")


@pytest.mark.parametrize("name", ["sft", "preference"])
def test_the_losses_agree(runs, name):
    """Of words and masks, of both kinds of preferences; each is the mean over the whole batch."""
    assert_losses_agree(runs, name)


@pytest.mark.parametrize("runs", [2], indirect=True)
def test_the_losses_with_adapters_agree(runs):
    assert_losses_agree(runs, "adapters")


def assert_losses_agree(runs, name):
    one, several = (summary(folder, name)["logs"] for folder in runs)
    assert len(one) == len(several) == 2
    parts = {key for key in one[0] if key.split("/")[-1] in ("loss", "grad_norm", "ce", "bce", "dice", "quality")}
    assert len(parts) > 5
    for first, second in zip(one, several, strict=True):
        for part in parts:
            assert second[part] == pytest.approx(first[part], abs=1e-3, rel=1e-3), part


@pytest.mark.parametrize("file", ["sft/model.safetensors", "preference/model.safetensors"])
def test_the_weights_agree(runs, file):
    """Whole ones are saved. Where a gradient is rounding alone, as of a bias that softmax does not feel, AdamW makes
    steps of it, 1e-3 each at most."""
    one, several = (load_file(folder / file) for folder in runs)
    assert all(several[name].shape == own.shape for name, own in one.items())  # tied ones may be there twice
    gaps = torch.cat([(several[name] - own).abs().flatten() for name, own in one.items()])
    assert (gaps > 1e-5).float().mean() < 0.01 and gaps.max() < 3e-3


def test_a_resumed_run_has_the_same_bytes(runs):
    whole, resumed = ((runs[1] / name / "model.safetensors").read_bytes() for name in ("sft", "resumed"))
    assert whole == resumed
    assert len(summary(runs[1], "resumed")["logs"]) == 2  # the first line is the checkpoint's


def test_a_nan_on_one_process_skips_the_step_on_both_and_three_in_a_row_end_the_training(runs):
    """The engine steps before anybody can look at the gradient, and sees none of the loss."""
    for rank in (0, 1):
        assert_skipped(runs[1] / f"faults{rank}.json")


@pytest.mark.parametrize("runs", [2], indirect=True)
def test_a_nan_in_bf16_skips_the_step_too(runs):
    for rank in (0, 1):
        assert_skipped(runs[1] / f"faults_bf16{rank}.json")


def assert_skipped(file):
    """The steps 0 and 2 are taken; the last of those that are not raises before it ends."""
    found = json.loads(file.read_text())
    first, second, third, *rest = found["digests"]
    assert first == second != third and rest == [third, third]
    assert found["skipped"] == [None, 1, None, 1, 1]
    assert found["message"].startswith("step 5: the gradient on rank 1 is not finite, in the 3 last steps")
