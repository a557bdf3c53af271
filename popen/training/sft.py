"""Supervised fine-tuning: words and masks together, all questions about a picture in one row."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import datasets
import torch
from transformers import TrainingArguments

from popen.data.schema import Sample
from popen.lvlm.lengths import check_lengths
from popen.lvlm.packing import supervised_batch
from popen.lvlm.processing_popen import PopenProcessor
from popen.training.callbacks import PartLossTrainer, newest_checkpoint
from popen.training.mask_loss import MaskLoss, mask_parts, target_maps

NOT_THE_MODELS = ("token_sequence", "sequence_row", "target_distance", "target_geodesic")


@dataclass
class SFTArguments(TrainingArguments):
    """TrainingArguments with this trainer's defaults."""

    output_dir: str = field(default="runs/sft", metadata={"help": "Where checkpoints and the final model go."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate; PixelLM's with LoRA."})
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Train hidden matrices with Muon at this rate; for models from scratch."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: rows are packed by the collator."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: non-finite losses must be seen."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between two log lines."})
    ddp_find_unused_parameters: bool = field(
        default=True, metadata={"help": "A vision tower's last layer may be unused."}
    )


class SupervisedCollator:
    """Rows of the schema to the model's inputs, with the maps that a loss on masks asks for."""

    def __init__(self, processor: PopenProcessor, mask_loss: MaskLoss | None = None):
        self.processor, self.mask_loss = processor, mask_loss

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        samples = [Sample.from_row(row) for row in rows]
        batch = supervised_batch(self.processor, samples)
        if self.mask_loss is None:
            return batch
        seen = samples if self.mask_loss.geodesic else []
        pictures = [self.processor.place(sample.image, sample.image_id)[0] for sample in seen]
        return batch | target_maps(self.mask_loss, batch, pictures)


class SegmentationSFTTrainer(PartLossTrainer):
    """Trains `PopenForReasoningSegmentation` on answers and masks; loss as in PixelLM, section 3.4.

    A `mask_loss` stands in the place of the model's cross-entropy and Dice on masks, which are then only logged: its
    Dice weighs as much as theirs, its other parts as much as their cross-entropy.
    """

    counters: ClassVar = {
        "token_count": lambda batch: len(batch["token_labels"]),
        "target_count": lambda batch: len(batch["target_row"]),
        "look_count": lambda batch: len(batch["look_row"]),
    }

    def __init__(
        self,
        *args,
        processor: PopenProcessor,
        train_dataset: datasets.Dataset,
        mask_loss: MaskLoss | None = None,
        **kwargs,
    ):
        check_lengths(processor, train_dataset, quiet=int(os.environ.get("RANK", "0")) > 0)
        kwargs["train_dataset"] = train_dataset
        collator = SupervisedCollator(processor, mask_loss)
        super().__init__(*args, processor=processor, data_collator=collator, **kwargs)
        self.mask_loss = mask_loss

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        if self.mask_loss is not None and resume_from_checkpoint:
            named = isinstance(resume_from_checkpoint, str)
            found = resume_from_checkpoint if named else newest_checkpoint(self.args.output_dir)
            if found is not None:
                self.mask_loss.resume(Path(found))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.mask_loss is not None and self.args.should_save:  # before the processor, which makes it whole
            self.mask_loss.keep(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")

    def model_inputs(self, inputs: dict) -> dict:
        return {k: v for k, v in inputs.items() if k not in NOT_THE_MODELS}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        shares = self.shares(inputs)
        outputs = model(**self.model_inputs(inputs), **shares)
        loss = outputs.loss if self.mask_loss is None else self._loss(outputs, inputs, shares["target_count"])
        self.watch(loss)
        self.note(
            **{
                "text/ce": outputs.ce_loss,
                "seg/bce": outputs.bce_loss,
                "seg/dice": outputs.dice_loss,
                "seg/quality": outputs.quality_loss,
            }
        )
        for name, part in (("seg/look", outputs.look_loss), ("text/name", outputs.name_loss)):
            if part is not None:
                self.note(**{name: part})
        return (loss, outputs) if return_outputs else loss

    def _loss(self, outputs, inputs: dict, target_count: float) -> torch.Tensor:
        """The model's loss with `mask_loss` in the place of its own on masks."""
        config, progress = self.model.config, self.state.global_step / max(self.state.max_steps, 1)
        parts = mask_parts(self.mask_loss.loss, outputs.mask_logits, inputs, progress)
        parts = {name: part * (len(inputs["target_row"]) / target_count) for name, part in parts.items()}
        self.note(**{f"mask/{name}": part for name, part in parts.items()})
        loss = config.ce_weight * outputs.ce_loss + config.quality_weight * outputs.quality_loss
        for weight, part in ((config.look_weight, outputs.look_loss), (config.name_weight, outputs.name_loss)):
            if part is not None:
                loss = loss + weight * part
        for name, part in parts.items():
            loss = loss + (config.dice_weight if name == "dice" else config.bce_weight) * part
        return loss
