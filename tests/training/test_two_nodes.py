"""Two machines that share nothing, here on loopback with a folder each: the steps of one process with both batches."""

import os
import runpy
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import write_dataset
from popen.training import SFTArguments, callbacks
from popen.training.launch import Launch, read_launch

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "recipes" / "accelerate"
RECIPE = {
    "model_name_or_path": "model", "dataset": "data", "output_dir": "out", "attn_implementation": "eager",
    "max_steps": 2, "learning_rate": 1e-3, "seed": 0, "logging_steps": 1, "save_steps": 1, "report_to": "none",
    "use_cpu": True, "disable_tqdm": True, "save_on_each_node": True,
}  # fmt: skip
# What Slurm does with the script, as far as it goes without Slurm: a task for each machine, in a folder of its own.
SRUN = """#!/usr/bin/env bash
shift
for node in 0 1; do (cd "$FOLDERS/node$node" && SLURM_NODEID=$node exec "$@") & pids+=($!); done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
SCONTROL = '#!/usr/bin/env bash\n[[ "$*" == "show hostnames here[0-1]" ]] && printf "127.0.0.1\\nelsewhere\\n"\n'


def free_job() -> int:
    """A Slurm job whose port is free now."""
    for job in range(os.getpid(), os.getpid() + 20000):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", 20000 + job % 20000)):
                return job
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    """The folder of one process with four rows a step, and of two machines with two each, started by slurm.sh."""
    root = tmp_path_factory.mktemp("nodes")
    scenes = [sample(seed) for seed in range(8)]  # of one to five questions: the shares of the machines differ
    uneven = [replace(scene, questions=scene.questions[: 1 + 2 * i % 5]) for i, scene in enumerate(scenes)]
    write_dataset(uneven, root / "data", "train")
    for name, rows in (("one", 4), ("node0", 2), ("node1", 2)):
        folder = root / name
        for part in tiny:
            part.save_pretrained(folder / "model")
        shutil.copytree(root / "data", folder / "data")
        (folder / "recipes").symlink_to(ROOT / "recipes")
        (folder / "sft.yaml").write_text(yaml.safe_dump(RECIPE | {"per_device_train_batch_size": rows}))
    shutil.rmtree(root / "data")
    (root / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "FOLDERS": str(root),
        "ACCELERATE_USE_CPU": "true",
        "PATH": f"{root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "here[0-1]", "SLURM_JOB_ID": str(free_job()), "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }  # fmt: skip
    recipe = ["recipes/sft.py", "--config", "sft.yaml"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "one")
        patch.setattr(sys, "argv", recipe)
        runpy.run_path(recipe[0], run_name="__main__")
    both = ["bash", str(SCRIPTS / "slurm.sh"), *recipe, "--ddp_backend", "gloo"]
    done = subprocess.run(both, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def same(first, second):
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_two_machines_take_the_steps_of_one_process(runs):
    same(runs / "one" / "out", runs / "node0" / "out")


def test_each_machine_has_whole_checkpoints_of_its_own(runs):
    for name in ("node0", "node1"):
        newest = callbacks.newest_checkpoint(runs / name / "out")
        assert newest == str(runs / name / "out" / "checkpoint-2")
        same(runs / "one" / "out", Path(newest))


def test_machines_with_other_checkpoints_do_not_resume(monkeypatch, tmp_path):
    args = SFTArguments(output_dir=str(tmp_path), use_cpu=True, resume_from_checkpoint="true")
    monkeypatch.setattr(callbacks, "gather_object", lambda own: ["checkpoint-2", *own])
    with pytest.raises(DataError, match=r"is checkpoint-2 here and none there; .* save_on_each_node: true"):
        callbacks.resume_path(args)


@pytest.mark.parametrize("missing", ["NODES", "NODE_RANK", "MASTER_ADDR"])
def test_what_is_not_said_is_asked_for(missing):
    given = {name: "1" for name in ("NODES", "NODE_RANK", "MASTER_ADDR") if name != missing}
    command = ["bash", str(SCRIPTS / "multi_node.sh")]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]} | given, capture_output=True, text=True)
    assert done.returncode != 0 and f"{missing}: " in done.stderr


@pytest.mark.parametrize("file", sorted(SCRIPTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_knows_every_key(file):
    """By its own reader, and by the options that its launcher takes."""
    load_config_from_file(str(file))
    config = yaml.safe_load(file.read_text())
    options = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert config.get(section, {}).keys() <= options, section


def test_fsdp2_shards_everything():
    assert read_launch(SCRIPTS / "fsdp2.yaml") == Launch("fsdp", 8, 3, mixed_precision="bf16")
