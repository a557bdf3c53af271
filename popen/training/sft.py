"""Supervised fine-tuning: words and masks together, all questions about a picture in one row."""

import os
from dataclasses import dataclass, field
from typing import ClassVar

import datasets
import torch
from transformers import TrainingArguments

from popen.data.schema import Sample
from popen.lvlm.lengths import check_lengths
from popen.lvlm.packing import supervised_batch
from popen.lvlm.processing_popen import PopenProcessor
from popen.training.callbacks import PartLossTrainer


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
    """Rows of the schema to the model's inputs."""

    def __init__(self, processor: PopenProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        return supervised_batch(self.processor, [Sample.from_row(row) for row in rows])


class SegmentationSFTTrainer(PartLossTrainer):
    """Trains `PopenForReasoningSegmentation` on answers and masks; loss as in PixelLM, section 3.4."""

    counters: ClassVar = {
        "token_count": lambda batch: len(batch["token_labels"]),
        "target_count": lambda batch: len(batch["target_row"]),
        "look_count": lambda batch: len(batch["look_row"]),
    }

    def __init__(self, *args, processor: PopenProcessor, train_dataset: datasets.Dataset, **kwargs):
        check_lengths(processor, train_dataset, quiet=int(os.environ.get("RANK", "0")) > 0)
        kwargs["train_dataset"] = train_dataset
        super().__init__(*args, processor=processor, data_collator=SupervisedCollator(processor), **kwargs)

    def model_inputs(self, inputs: dict) -> dict:
        return {k: v for k, v in inputs.items() if k not in ("token_sequence", "sequence_row")}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = self.model_inputs(inputs)
        outputs = model(**inputs, **self.shares(inputs))
        self.watch(outputs.loss)
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
        return (outputs.loss, outputs) if return_outputs else outputs.loss
