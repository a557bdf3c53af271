"""The run that a recipe's YAML asks for, as `popen plan` needs it: arguments, model without weights, heaviest rows."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from trl import TrlParser

from popen.data.mixing import load_mixture
from popen.data.safe_io import DataError
from popen.data.schema import Sample
from popen.lvlm import adapters
from popen.lvlm.configuration_popen import PopenConfig
from popen.lvlm.mining import load_mined
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.packing import preference_branches, question_branches
from popen.lvlm.processing_popen import PopenProcessor
from popen.lvlm.row_attention import FLEX
from popen.training.launch import Launch, read_yaml
from popen.training.lora import LoraArguments, with_lora
from popen.training.mask_loss import MaskLossArguments
from popen.training.preference import (
    MODEL_INPUTS,
    PreferenceArguments,
    PreferenceCollator,
    PreferenceStreams,
)
from popen.training.quantisation import QuantisationArguments, prepared, quantised_modules
from popen.training.sft import SFTArguments, SupervisedCollator

LOOKED_AT = 64  # rows among which the heaviest is sought
LEFT_OUT = ("token_sequence", "sequence_row")  # of a supervised batch: not the model's


@dataclass
class PlannedArguments:
    """What recipes/sft.py and recipes/preference.py take beside their trainers' arguments."""

    model_name_or_path: str = field(metadata={"help": "A popen model folder or Hub id; its weights are not read."})
    dataset: str | list[str] = field(metadata={"help": "Folder of a data set, or several."})
    preferences: str | None = field(default=None, metadata={"help": "Folder that recipes/mine.py wrote."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    rates: list[float] | None = field(default=None, metadata={"help": "How often each data set is drawn."})
    freeze_pixels: bool = field(default=False, metadata={"help": "As in recipes/sft.py."})
    freeze_vision: bool = field(default=False, metadata={"help": "As in recipes/sft.py."})
    attn_implementation: str | None = field(default=None, metadata={"help": "As in recipes/sft.py."})
    max_rows: int | None = field(default=None, metadata={"help": "As in recipes/sft.py."})
    text_pairs: str = field(default="all", metadata={"help": "As in recipes/preference.py."})


@dataclass(frozen=True)
class PlannedRun:
    """A recipe's arguments; `kind` is "SFT" or "preference"."""

    kind: str
    script: PlannedArguments
    training: SFTArguments | PreferenceArguments
    lora: LoraArguments
    quantisation: QuantisationArguments
    masks: MaskLossArguments

    @classmethod
    def read(cls, config: str | Path, overrides: list[str]) -> "PlannedRun":
        """Parses a recipe's YAML and overrides of its keys, as the recipe does.

        Raises:
            DataError: the file is missing or no mapping. ValueError: a key that neither recipe has; names it.
        """
        is_preference = "preferences" in read_yaml(config) or "--preferences" in overrides
        training = PreferenceArguments if is_preference else SFTArguments
        parser = TrlParser((PlannedArguments, training, LoraArguments, QuantisationArguments, MaskLossArguments))
        argv = ["--config", str(config), *overrides, "--use_cpu", "true"]  # nothing runs: bf16 asks for no device
        return cls("preference" if is_preference else "SFT", *parser.parse_args_and_config(argv))

    @property
    def compute(self) -> torch.dtype | None:
        """The dtype of mixed precision, None without."""
        return torch.bfloat16 if self.training.bf16 else torch.float16 if self.training.fp16 else None

    def features(self, launch: Launch) -> str:
        """What decides about memory, in words."""
        precision = {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.compute]
        found = [
            precision,
            "QLoRA" if self.quantisation.wanted else "LoRA" if self.lora.use_peft else "all weights",
            *(["activation checkpointing"] if self.training.activation_checkpointing else []),
            str(launch),
        ]
        return ", ".join(found)

    @cached_property
    def folder(self) -> str:
        """The model's folder; of an adapter the base that it is merged into."""
        name = self.script.model_name_or_path
        return adapters.base_of(Path(name), name) if (Path(name) / adapters.CONFIG).is_file() else name

    @cached_property
    def processor(self) -> PopenProcessor:
        return PopenProcessor.from_pretrained(self.folder)

    def model(self):
        """The model as its recipe prepares it for training, on the meta device.

        Raises:
            DataError: the folder has no configuration of a popen model.
        """
        try:
            config = PopenConfig.from_pretrained(self.folder)
        except OSError as error:
            raise DataError(f"{self.folder}: no config.json of a popen model; copy the model's folder") from error
        script, kept_dtype = self.script, config.dtype or torch.float32
        with torch.device("meta"):
            model = PopenForReasoningSegmentation(config).to(kept_dtype)
            if script.freeze_pixels:
                model.freeze_pixels()
            if script.attn_implementation not in (None, FLEX):  # whose kernels keep no more than the others
                model.set_attn_implementation(script.attn_implementation)
            if script.freeze_vision:
                model.freeze_vision()
            if self.quantisation.wanted:
                model = prepared(model)
                for module in quantised_modules(model, self.quantisation):
                    module.weight.data = module.weight.data.to(self.compute or torch.float32)
            if self.lora.use_peft:
                model = with_lora(model, self.lora)
        if self.training.activation_checkpointing:
            options = self.training.activation_checkpointing_kwargs or None
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        return model.train()

    @cached_property
    def heaviest(self) -> tuple[dict, int]:
        """Of the first rows the one with most tokens, and how many it has."""
        if self.kind == "SFT":
            rows = load_mixture(self.script.dataset, self.script.split, self.script.rates, self.training.seed)
        else:
            script = self.script
            text, seg, report = load_mined(str(script.preferences))
            mined = load_mixture(script.dataset, script.split, script.rates, report["settings"]["seed"])
            rows = PreferenceStreams(text, seg, mined)
        items = [rows[index] for index in range(min(LOOKED_AT, len(rows)))]
        tokens = [self._tokens_of(item) for item in items]
        most = max(range(len(items)), key=tokens.__getitem__)
        return items[most], tokens[most]

    def _tokens_of(self, item: dict) -> int:
        """Of the longest packed row that an item makes."""
        sample = item["seg"][1] if self.kind == "preference" else Sample.from_row(item)
        pairs = [(question.question, question.answer) for question in sample.questions]
        packed = [question_branches(self.processor, pairs, sample.image_id)]
        if self.kind == "preference":
            pair = item["text"][0]
            packed.append(
                preference_branches(self.processor, pair["question"], pair["chosen"], pair["rejected"], pair["id"])
            )
        return max(len(row.tree.input_ids) for row in packed)

    def batch(self, rows: int) -> dict[str, torch.Tensor]:
        """What the model is given for a micro-batch of the heaviest row."""
        return self.batch_of([self.heaviest[0]] * rows)

    def batch_of(self, items: list[dict]) -> dict[str, torch.Tensor]:
        if self.kind == "SFT":
            batch = SupervisedCollator(self.processor)(items)
            return {name: value for name, value in batch.items() if name not in LEFT_OUT}
        scales = PopenConfig.from_pretrained(self.folder).scales
        batch = PreferenceCollator(self.processor, scales)(items)
        return {name: batch[name] for name in MODEL_INPUTS}
