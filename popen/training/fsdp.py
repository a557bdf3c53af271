"""Weights in the pieces of FSDP2: what cannot be trained so is refused, and what accelerate leaves out is done."""

import os
from dataclasses import replace

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from popen.data.safe_io import DataError
from popen.training.optimizer_states import STATES_IN_BITSANDBYTES, optimizer_name


def prepare_fsdp(accelerator: Accelerator, model: nn.Module, training: TrainingArguments) -> None:
    """Checks a training that was launched with FSDP, and has losses and sums of gradients stay in float32.

    accelerate would have the model's outputs in the dtype of mixed precision: in bfloat16 a log-probability has three
    digits, and preferences are differences of sums of them.

    Raises:
        DataError: accelerate would not split the weights here, or what is asked for does not go with pieces.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        raise DataError(
            "distributed_type FSDP: accelerate splits weights over GPUs alone and there is none here; launch with "
            "torchrun, which trains whole copies"
        )
    _check(plugin.fsdp_version, str(plugin.state_dict_type), model, training)
    if plugin.mixed_precision_policy is not None:
        policy = plugin.mixed_precision_policy
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def _check(version: int, state_dict_type: str, model: nn.Module, training: TrainingArguments) -> None:
    if version != 2:
        raise DataError(f"fsdp_version {version}: recipes train with 2; see recipes/accelerate/fsdp2.yaml")
    if "FULL_STATE_DICT" not in state_dict_type:
        raise DataError(f"fsdp_state_dict_type {state_dict_type}: no model would be saved; set FULL_STATE_DICT")
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise DataError(f"distributed_type FSDP: a {type(model).__name__} is trained in whole copies; use torchrun")
    if getattr(training, "muon_learning_rate", None):
        raise DataError("muon_learning_rate: FSDP2 cannot save Muon's states; leave it out, or use torchrun")
    if isinstance(model, PeftModel) and model.all_tied_weights_keys:
        raise DataError(
            "use_peft: FSDP2 cannot split words that are embedding and output layer at once and have rows trained "
            "beside them; use recipes/accelerate/zero2.yaml"
        )
    name = optimizer_name(training)
    if name in STATES_IN_BITSANDBYTES or getattr(model, "is_quantized", False):
        what = f"optim {name}" if name in STATES_IN_BITSANDBYTES else "load_in_4bit, load_in_8bit"
        raise DataError(f"{what}: bitsandbytes does not know weights in pieces; leave it out, or use torchrun")


def complete_states(optimizer: torch.optim.Optimizer) -> None:
    """Gives a weight that no loss has reached yet the states that its first step would start from: zeros.

    As the preference head, or what of the vision tower nobody reads. torch saves states as it finds them, but resumes
    FSDP2 only from those of all weights that may be trained.
    """
    if not optimizer.state:
        return  # no step has been taken
    reached, found = next(iter(optimizer.state.items()))
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        if weight not in optimizer.state:
            optimizer.state[weight] = {
                name: torch.zeros_like(weight if state.shape == reached.shape else state)
                for name, state in found.items()
            }
