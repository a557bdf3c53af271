"""FSDP2 on two processes, which take the steps of one with the recipes, save whole models, skip a step together and
resume to the byte; what cannot be in pieces is refused."""

import copy
import json
import runpy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from torch.distributed.fsdp import fully_shard

from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.lvlm import label_logps
from popen.lvlm.loading import load_model
from popen.lvlm.packing import supervised_batch
from popen.training import SFTArguments
from popen.training.fsdp import complete_states, prepare_fsdp
from popen.training.lora import LoraArguments, with_lora
from tests.launching import ACCELERATE, ROOT, launch_forked
from tests.mined import mined_folder

SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
from runpy import run_path
from unittest.mock import patch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from popen.distributed import cores
from popen.training import callbacks
from tests.training.spoiled_run import spoiled_run

recipes, root, out = sys.argv[1:]
several = "WORLD_SIZE" in os.environ
rank = os.environ.get("RANK", "0")
common = {
    "learning_rate": 1e-3, "seed": 0, "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2 if several else 4,
}
finish, begin = callbacks.finish, AcceleratorState.__init__

def begin_on_processors(self, *args, **kwargs):  # which accelerate has no FSDP for
    state = PartialState(cpu=True)
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU
    begin(self, *args, **kwargs)

def finish_noted(trainer):
    weights = list(trainer.model.parameters())
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    found = {
        "pieces": sum(isinstance(own, DTensor) for own in weights), "weights": len(weights),
        "here": sum((own.to_local() if isinstance(own, DTensor) else own).numel() for own in weights),
        "entries": sum(own.numel() for own in weights),
        "policy": policy and [str(getattr(policy, name)) for name in ("param_dtype", "reduce_dtype", "output_dtype")],
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    Path(f"{trainer.args.output_dir}{rank}.json").write_text(json.dumps(found))
    finish(trainer)

def recipe(name, run, *options, model="model"):
    given = {"model_name_or_path": f"{root}/{model}", "dataset": f"{root}/data", "output_dir": f"{out}/{run}"}
    given |= common | {"max_steps": 2}
    sys.argv = [name, "--attn_implementation", "eager", *options]
    for key, value in given.items():
        sys.argv += [f"--{key}", str(value)]
    run_path(f"{recipes}/{name}.py", run_name="__main__")

Path(out).mkdir(exist_ok=True)
often, never = ("--save_strategy", "steps", "--save_steps", "1"), ("--save_strategy", "no")
with (
    patch.object(AcceleratorState, "__init__", begin_on_processors if several else begin),
    patch.object(callbacks, "finish", finish_noted),
    patch.object(cores, "use_all_cores"),  # of the process of the test
    patch.object(callbacks.PartLossTrainer, "end"),  # after which there is no process group
):
    recipe("sft", "sft", *often)
    if several and rank == "0":  # what a run leaves that was killed after its first step
        shutil.copytree(f"{out}/sft/checkpoint-1", f"{out}/resumed/checkpoint-1")
    if several:
        recipe("sft", "resumed", *often, "--resume_from_checkpoint", "true")
        recipe("sft", "half", *never, "--bf16", "true")
        spoiled_run(root, out, "faults", **common)
    recipe("preference", "preference", *never, "--preferences", f"{root}/mined")
    recipe("sft", "adapters", *never, "--use_peft", "true", "--lora_dropout", "0", model="untied")
"""


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # one output is a view, which nobody changes in place
def test_a_sharded_step_is_a_step(tiny, samples, one_process_mesh, monkeypatch):
    """Layers that the backbone's classes name are wrapped, then the rest: loss and gradients are as before, also where
    the logits are computed in pieces."""
    plain = copy.deepcopy(tiny[0]).train()
    sharded = copy.deepcopy(plain)
    assert "LlamaDecoderLayer" in plain._no_split_modules  # what TRANSFORMER_BASED_WRAP goes by
    for module in sharded.modules():
        if type(module).__name__ in plain._no_split_modules:
            fully_shard(module, mesh=one_process_mesh)
    fully_shard(sharded, mesh=one_process_mesh)
    batch = supervised_batch(tiny[1], samples[:2])
    inputs = {name: value for name, value in batch.items() if name not in ("token_sequence", "sequence_row")}
    losses = []
    for model, logits in ((plain, 2**25), (sharded, 2**14)):
        monkeypatch.setattr(label_logps, "LOGITS_AT_ONCE", logits)
        loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1])
    pieces = dict(sharded.named_parameters())
    for name, parameter in plain.named_parameters():
        found = pieces[name].grad
        if parameter.grad is None:
            assert found is None
        else:
            torch.testing.assert_close(found.full_tensor(), parameter.grad, msg=name)


def test_every_layer_that_is_not_to_be_split_is_there(tiny):
    """accelerate refuses a name that it does not find; CLIP's class names layers of text, too."""
    named = tiny[0]._no_split_modules
    assert {"LlamaDecoderLayer", "CLIPEncoderLayer"} <= set(named) <= {type(own).__name__ for own in tiny[0].modules()}


def untied(model):
    """A copy whose output layer has weights of its own, as LLaVA's and Qwen's of 7 B have."""
    model = copy.deepcopy(model)
    model.backbone.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    for config in (model.config, model.config.backbone_config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory, taught):
    """Folders of what one process makes of the recipes, and two with FSDP2."""
    root = tmp_path_factory.mktemp("fsdp")
    for part in (untied(taught[0]), taught[1]):
        part.save_pretrained(root / "untied")
    scenes = [sample(seed) for seed in range(8)]  # of one to five questions: the shares of the processes differ
    uneven = [replace(scene, questions=scene.questions[: 1 + 2 * i % 5]) for i, scene in enumerate(scenes)]
    mined_folder(root, *taught, uneven)
    (root / "train.py").write_text(SCRIPT)
    shipped = yaml.safe_load((ROOT / "recipes" / "accelerate" / "fsdp2.yaml").read_text())
    here = {"use_cpu": True, "mixed_precision": "no", "num_processes": 2}
    (root / "fsdp2.yaml").write_text(yaml.safe_dump(shipped | here))
    train = [str(root / "train.py"), str(ROOT / "recipes"), str(root)]
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", [*train, str(root / "one")])
        runpy.run_path(train[0], run_name="__main__")
    done = launch_forked([*ACCELERATE, "--config_file", str(root / "fsdp2.yaml"), *train, str(root / "two")], root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "one", root / "two"


def summary(folder, name):
    return json.loads((folder / f"{name}0.json").read_text())


def test_each_process_holds_its_pieces(runs):
    one, two = (summary(folder, "sft") for folder in runs)
    assert one["pieces"] == 0 and one["here"] == one["entries"] == two["entries"]
    assert two["pieces"] == two["weights"] == one["weights"]
    other = json.loads((runs[1] / "sft1.json").read_text())
    assert two["here"] + other["here"] == two["entries"] and abs(two["here"] - other["here"]) < 0.05 * two["entries"]


@pytest.mark.parametrize("name", ["sft", "preference", "adapters"])
def test_the_losses_agree(runs, name):
    """Of words and masks, of both kinds of preferences; each is the mean over the whole batch."""
    one, two = (summary(folder, name)["logs"] for folder in runs)
    assert len(one) == len(two) == 2
    parts = {key for key in one[0] if key.split("/")[-1] in ("loss", "grad_norm", "ce", "bce", "dice", "quality")}
    assert len(parts) > 5
    for first, second in zip(one, two, strict=True):
        for part in parts:
            assert second[part] == pytest.approx(first[part], abs=1e-4, rel=1e-4), part


@pytest.mark.parametrize("file", ["sft/model", "preference/model", "adapters/adapter_model"])
def test_the_weights_agree(runs, file):
    """Whole ones are saved. Where a gradient is rounding alone, as of a bias that softmax does not feel, AdamW makes
    steps of it, 1e-3 each at most."""
    one, two = (load_file(folder / f"{file}.safetensors") for folder in runs)
    assert all(two[name].shape == own.shape for name, own in one.items())  # tied ones are there twice
    gaps = torch.cat([(two[name] - own).abs().flatten() for name, own in one.items()])
    assert (gaps > 1e-5).float().mean() < 0.01 and gaps.max() < 3e-3


@pytest.mark.parametrize("name", ["sft", "sft/checkpoint-1", "preference"])
def test_what_is_saved_loads(runs, name):
    model, _ = load_model(runs[1] / name)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_resumed_run_has_the_same_bytes(runs):
    """Though some weights never had a gradient, and so no state."""
    whole, resumed = ((runs[1] / name / "model.safetensors").read_bytes() for name in ("sft", "resumed"))
    assert whole == resumed
    assert len(summary(runs[1], "resumed")["logs"]) == 2  # the first line is the checkpoint's


def test_a_nan_on_one_process_skips_the_step_on_both_and_three_in_a_row_end_the_training(runs):
    for rank in (0, 1):
        found = json.loads((runs[1] / f"faults{rank}.json").read_text())
        first, second, third, *rest = found["digests"]
        assert first == second != third and rest == [third, third]
        assert found["skipped"] == [None, 1, None, 1, 1]
        assert found["message"].startswith("step 5: the gradient on rank 0, 1 is not finite, in the 3 last steps")


def test_half_precision_sums_in_full_precision(runs):
    """Losses come out of the model in float32 and gradients are summed in it; only the layers are in bfloat16."""
    found = summary(runs[1], "half")
    assert found["policy"] == ["torch.bfloat16", "torch.float32", "None"]
    for whole, half in zip(summary(runs[1], "sft")["logs"], found["logs"], strict=True):
        assert half["loss"] == pytest.approx(whole["loss"], rel=0.05)
    assert {own.dtype for own in load_file(runs[1] / "half" / "model.safetensors").values()} == {torch.float32}


def test_states_of_weights_without_a_gradient_are_those_of_a_first_step():
    """Later gradients then have the effect that they would have had."""
    torch.manual_seed(0)
    late, early = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))
    copies = [nn.Parameter(own.detach().clone()) for own in (late, early)]
    for completed, weights in ((True, (late, early)), (False, copies)):
        optimizer = torch.optim.AdamW(weights, lr=0.1)
        complete_states(optimizer)
        assert not optimizer.state  # before any step there is none to go by
        weights[1].grad = torch.ones(2)
        optimizer.step()
        if completed:
            complete_states(optimizer)
        assert (weights[0] in optimizer.state) == completed
        weights[0].grad = torch.ones(3)
        optimizer.step()
    assert all(map(torch.equal, (late, early), copies))


@pytest.fixture
def launched(monkeypatch):
    """What accelerate tells a trainer under fsdp2.yaml; keywords change the plugin."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")

    def with_plugin(**changed):
        plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"} | changed)
        return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))

    return with_plugin


@pytest.mark.parametrize(
    "changed, options, message",
    [
        ({"fsdp_version": 1}, {}, "fsdp_version 1: recipes train with 2"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, {}, "SHARDED_STATE_DICT: no model would be saved"),
        ({}, {"muon_learning_rate": 1e-2}, "muon_learning_rate: FSDP2 cannot save Muon's states"),
        ({}, {"optim": "adamw_bnb_8bit"}, "optim adamw_bnb_8bit: bitsandbytes does not know"),
    ],
)
def test_what_does_not_go_with_pieces_is_refused(launched, tiny, tmp_path, changed, options, message):
    training = SFTArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    with pytest.raises(DataError, match=message):
        prepare_fsdp(launched(**changed), tiny[0], training)


def test_models_that_do_not_go_with_pieces_are_refused(launched, tiny, tmp_path):
    training = SFTArguments(output_dir=str(tmp_path), use_cpu=True)
    adapted = with_lora(copy.deepcopy(tiny[0]), LoraArguments(use_peft=True))
    assert isinstance(adapted, PeftModel)
    with pytest.raises(DataError, match="use_peft: FSDP2 cannot split words that are embedding and output layer"):
        prepare_fsdp(launched(), adapted, training)
    with pytest.raises(DataError, match="a Linear is trained in whole copies"):
        prepare_fsdp(launched(), nn.Linear(2, 2), training)
    prepare_fsdp(launched(), with_lora(untied(tiny[0]), LoraArguments(use_peft=True)), training)


def test_processors_would_hold_whole_copies(launched, tiny, tmp_path):
    """accelerate trains so without a word."""
    training = SFTArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(DataError, match="distributed_type FSDP: accelerate splits weights over GPUs alone"):
        prepare_fsdp(SimpleNamespace(state=SimpleNamespace()), tiny[0], training)
