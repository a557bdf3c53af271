"""Alignment: picture tokens learn to say what they show, before a model that learns from nothing has to speak."""

from typing import ClassVar

import torch

from popen.data.schema import Sample
from popen.lvlm.packing import alignment_batch
from popen.lvlm.processing_popen import PopenProcessor
from popen.training.callbacks import PartLossTrainer


class AlignmentCollator:
    """Rows of the schema to pictures, masks and phrases."""

    def __init__(self, processor: PopenProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        return alignment_batch(self.processor, [Sample.from_row(row) for row in rows])


class AlignmentTrainer(PartLossTrainer):
    """Trains everything but the language model's layers: pictures name their targets, phrases ask for their masks.

    Ours; LLaVA's stage 1 in spirit. Afterwards the language model only has to learn what to say about what is seen.
    """

    counters: ClassVar = {"target_count": lambda batch: len(batch["target_row"])}

    def __init__(self, *args, processor: PopenProcessor, **kwargs):
        super().__init__(*args, processor=processor, data_collator=AlignmentCollator(processor), **kwargs)

    def model_inputs(self, inputs: dict) -> dict:
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, **self.shares(inputs))
        self.watch(outputs.loss)
        self.note(**{"text/name": outputs.name_loss, "seg/bce": outputs.bce_loss, "seg/dice": outputs.dice_loss})
        return (outputs.loss, outputs) if return_outputs else outputs.loss
