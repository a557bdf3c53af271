"""Two processes that share a batch take the steps of one with the whole of it, with adapters too, skip one together,
and resume."""

import json
import runpy
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from tests.launching import TORCHRUN, launch_forked, launch_ranks

SCRIPT = """
import hashlib, json, os, signal, sys, time
from pathlib import Path
from transformers import TrainerCallback, set_seed
from popen.data.schema import load_split
from popen.lvlm.loading import load_model
from popen.training import SegmentationSFTTrainer, SFTArguments
from popen.training.callbacks import finish, resume_path
from popen.training.lora import LoraArguments, with_lora
from popen.training.mask_loss import MaskLossArguments, mask_loss_of

root, rank = sys.argv[1], os.environ.get("RANK", "0")

class Spoiled(SegmentationSFTTrainer):
    bad = ()

    def watch(self, loss):
        if rank == "1" and self.state.global_step in self.bad:
            loss.data.fill_(float("nan"))
            loss.register_hook(lambda gradient: gradient * float("nan"))
        super().watch(loss)

class Digests(TrainerCallback):
    def __init__(self):
        self.found = []

    def on_step_end(self, args, state, control, model, **kwargs):
        tensors = [tensor.numpy().tobytes() for _, tensor in sorted(model.state_dict().items())]
        self.found.append(hashlib.sha256(b"".join(tensors)).hexdigest())

class Killed(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if rank == "1" and state.global_step == 1:  # after the checkpoint of the first step
            while not os.path.exists(args.output_dir + "/checkpoint-1/popen_processor.json"):
                time.sleep(0.1)
            Path(args.output_dir + "/died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

def train(name, batch, steps=2, bad=(), callbacks=(), lora=False, mask_loss="bce_dice", **options):
    args = SFTArguments(
        output_dir=root + "/" + name, max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-3, seed=0,
        logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None, **({"save_strategy": "no"} | options),
    )
    model, processor = load_model(root + "/model", attn_implementation="eager")
    if lora:
        set_seed(0)  # the adapters' first weights are drawn
        model = with_lora(model, LoraArguments(use_peft=True, lora_dropout=0.0))
    digests = Digests()
    trainer = Spoiled(
        model, args, train_dataset=load_split(root + "/data", "train"), processor=processor,
        callbacks=[digests, *callbacks],
        mask_loss=mask_loss_of(MaskLossArguments(mask_loss=mask_loss, multiplier_rate=5.0)),
    )
    trainer.bad, message = bad, ""
    try:
        trainer.train(resume_from_checkpoint=resume_path(args))
    except FloatingPointError as error:
        message = str(error)
    os.makedirs(args.output_dir, exist_ok=True)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    processes = trainer.accelerator.num_processes
    summary = {"logs": logs, "processes": processes, "digests": digests.found, "message": message}
    Path(f"{args.output_dir}/summary{rank}.json").write_text(json.dumps(summary))
    if name in (sys.argv[-1], "killed"):
        finish(trainer)  # as the recipes end: a process that leaves its group alone may be aborted
    else:
        trainer.save_model()

saved = {"save_strategy": "steps", "save_steps": 1}
for name in sys.argv[2:]:
    match name:
        case "one":
            train("one", 4)
        case "two":
            train("two", 2)
        case "adapters_one":
            train("adapters_one", 4, steps=3, lora=True)
        case "adapters_two":
            train("adapters_two", 2, steps=3, lora=True)
        case "masks_one":
            train("masks_one", 4, mask_loss="epsilon_constraint")
        case "masks_two":
            train("masks_two", 2, mask_loss="epsilon_constraint")
        case "skipped":
            train("skipped", 2, steps=3, bad=(1,))
        case "lasting":
            train("lasting", 2, steps=6, bad=(1, 2, 3))
        case "killed":
            train("killed", 2, callbacks=[Killed()], **saved)
        case "resumed":
            train("killed", 2, resume_from_checkpoint=True, **saved)
"""


def two(start, root, *jobs):
    return start([*TORCHRUN, str(root / "train.py"), str(root), *jobs], root, ACCELERATE_USE_CPU="true")


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny):
    """A folder with the untrained model, a data set and the script."""
    root = tmp_path_factory.mktemp("two")
    for part in tiny:
        part.save_pretrained(root / "model")
    scenes = [sample(seed) for seed in range(8)]  # of one to five questions: the shares of the processes differ
    uneven = [replace(scene, questions=scene.questions[: 1 + 2 * i % 5]) for i, scene in enumerate(scenes)]
    write_dataset(uneven, root / "data", "train")
    (root / "train.py").write_text(SCRIPT)
    return root


@pytest.fixture(scope="module")
def runs(root):
    """Folders that one process with 4 rows a step and two with 2 each have written; the two then go on to faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", str(root), "adapters_one", "masks_one", "one"])
        runpy.run_path(str(root / "train.py"), run_name="__main__")
    done = two(launch_forked, root, "two", "adapters_two", "masks_two", "skipped", "lasting")
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "one", root / "two"


def summary(folder, rank=0):
    return json.loads((folder / f"summary{rank}.json").read_text())


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


def test_adapters_take_the_same_steps(runs, root):
    """With the mask parts and rows of words that are trained beside them; of both of an adapter's matrices."""
    one, two = root / "adapters_one", root / "adapters_two"
    for part in ("loss", "grad_norm"):
        first, second = ([entry[part] for entry in summary(folder)["logs"]] for folder in (one, two))
        assert len(first) == 3 and second == pytest.approx(first, rel=1e-3), part
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys() and any("lora_A" in name for name in first)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    assert all(tensor.abs().max() > 1e-4 for name, tensor in first.items() if "lora_B" in name), "none was trained"


def test_a_loss_on_masks_has_one_multiplier(runs, root):
    """λ of the ε-constraint follows the interior's loss over the targets of both, of which one has more."""
    one, two = (summary(root / name)["logs"] for name in ("masks_one", "masks_two"))
    for part in ("loss", "grad_norm", "mask/interior", "mask/boundary", "mask/dice"):
        assert [entry[part] for entry in two] == pytest.approx([entry[part] for entry in one], rel=1e-3), part
    assert one[1]["mask/interior"] > 1.5 * one[0]["mask/interior"]  # λ went up


def test_the_logged_parts_are_those_of_the_whole_batch(runs):
    """What is logged beside the loss is not one process's share of it."""
    one, two = (summary(folder)["logs"][0] for folder in runs)
    for part in ("text/ce", "seg/bce", "seg/dice", "seg/quality"):
        assert two[part] == pytest.approx(one[part], abs=1e-3), part


# ---- faults of one of them


def test_a_nan_on_one_skips_the_step_on_both(runs, root):
    """The first step is that of the run without a NaN, the second is none, the third is one again."""
    found = [summary(root / "skipped", rank)["digests"] for rank in (0, 1)]
    assert found[0] == found[1] and found[0][0] == summary(runs[1])["digests"][0]
    assert found[0][1] == found[0][0] != found[0][2]
    assert [entry.get("skipped_steps") for entry in summary(root / "skipped")["logs"]] == [None, 1, None]


def test_three_in_a_row_end_both_and_name_the_one(runs, root):
    for rank in (0, 1):
        found = summary(root / "lasting", rank)
        assert found["message"].startswith("step 3: the loss on rank 1 is not finite, in the 3 last steps")
        assert len(set(found["digests"])) == 1


def test_a_killed_process_ends_the_other_and_the_resumed_run_has_the_same_bytes(runs, root):
    done = two(launch_ranks, root, "killed")
    assert done.returncode != 0 and time.time() - float((root / "killed" / "died").read_text()) < 60
    cause = done.stderr.partition("Root Cause")[2]
    assert "rank      : 1 " in cause and f"exitcode  : -{signal.SIGKILL.value} " in cause, done.stderr[-3000:]
    done = two(launch_forked, root, "resumed")
    assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = ((folder / "model.safetensors").read_bytes() for folder in (runs[1], root / "killed"))
    assert whole == resumed and len(summary(root / "killed")["digests"]) == 1
