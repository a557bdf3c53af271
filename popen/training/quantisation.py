"""QLoRA through bitsandbytes: the language model's layers in 4 or 8 bits, all else in float32, adapters trained.

Dettmers et al. 2023 (4 bits), Dettmers et al. 2022 (8 bits). Names are TRL's.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, TrainingArguments
from transformers.quantizers.quantizers_utils import should_convert_module

from popen.data.safe_io import DataError
from popen.lvlm import adapters
from popen.lvlm.families import FAMILIES
from popen.training.lora import LoraArguments
from popen.training.optimizer_states import check_bitsandbytes


@dataclass
class QuantisationArguments:
    """Whether and how the frozen language model is quantised."""

    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: its linear layers in 4 bits; needs CUDA."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Its linear layers in 8 bits; needs CUDA."})
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = field(default="nf4", metadata={"help": "The values of 4 bits."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantise the scales of 4 bits, too."})

    def __post_init__(self):
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit: a model is loaded in one of them; leave one out")

    @property
    def wanted(self) -> bool:
        return self.load_in_4bit or self.load_in_8bit


FULL_PRECISION = QuantisationArguments()


def check_quantisation(arguments: QuantisationArguments, lora: LoraArguments, name_or_path: str) -> None:
    """Refuses what cannot be, before anything is loaded.

    Raises:
        DataError: no adapters are trained, the model is an adapter itself, or CUDA or bitsandbytes is missing.
    """
    if not arguments.wanted:
        return
    asked = "load_in_4bit" if arguments.load_in_4bit else "load_in_8bit"
    if not lora.use_peft:
        raise DataError(f"{asked}: quantised weights cannot be trained, adapters on them can; add use_peft: true")
    if (Path(name_or_path) / adapters.CONFIG).is_file():
        raise DataError(
            f"{name_or_path}: an adapter, and {asked} quantises whole models; save model and processor of "
            "popen.lvlm.loading.load_model, which merges it, and give their folder"
        )
    check_bitsandbytes(asked, "use_peft alone", torch.cuda.is_available())


def quantised_loading(arguments: QuantisationArguments, training: TrainingArguments) -> dict[str, Any]:
    """Options of `load_model` for this process's device; none where nothing is to be quantised."""
    if not arguments.wanted:
        return {}
    compute = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32
    return {
        "quantization_config": bitsandbytes_config(arguments, compute),
        "device_map": {"": PartialState().local_process_index},
        "dtype": compute,
    }


def bitsandbytes_config(arguments: QuantisationArguments, compute: torch.dtype) -> BitsAndBytesConfig:
    """What transformers needs to quantise the linear layers of the language model and no others.

    Mask parts, picture projections, the vision tower and the output layer, whose `[SEG…]` rows are trained, are left.
    """
    language = "|".join(sorted({re.escape(family.language_model) for family in FAMILIES.values()}))
    return BitsAndBytesConfig(
        load_in_4bit=arguments.load_in_4bit,
        load_in_8bit=arguments.load_in_8bit,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_type=arguments.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=arguments.use_bnb_nested_quant,
        llm_int8_skip_modules=[
            rf"(?!backbone\.model\.(?:{language})\.).+"
        ],  # patterns; all whose name begins otherwise
    )


def quantised_modules(model, arguments: QuantisationArguments) -> list[torch.nn.Linear]:
    """The layers of a whole model that transformers would quantise."""
    skipped = bitsandbytes_config(arguments, torch.float32).llm_int8_skip_modules
    return [
        module
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and should_convert_module(name, skipped)
    ]


def prepared(model):
    """The quantised model as PEFT wants it before adapters: frozen, and what is not quantised in float32."""
    # the Trainer turns on checkpointed activations by itself, as it does for other adapters
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
