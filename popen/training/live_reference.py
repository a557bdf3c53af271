"""The reference computed beside every step, where the numbers that mining wrote are of another model or precision."""

import copy

import torch
from peft import PeftModel
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from popen.data.safe_io import DataError
from popen.preference.curriculum import STAGES


class LiveReference:
    """The model as it was before training: its adapters switched off, or a frozen copy where it has none.

    Args:
        model: before its first step, and before any checkpoint is loaded into it.
        inputs: names of what its forward takes.
    Raises:
        DataError: a copy is needed and ZeRO-3 has the weights in pieces.
    """

    def __init__(self, model: nn.Module, inputs: tuple[str, ...]):
        self.inputs, self.copy = inputs, None
        if not isinstance(model, PeftModel):
            if is_deepspeed_zero3_enabled():
                raise DataError(
                    "reference: live copies the model, and ZeRO-3 has it in pieces; use_peft: true needs no copy, "
                    "reference: cached no reference at all"
                )
            self.copy = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: dict):
        """Of the reference on a batch; `model` is the policy, unwrapped, whose adapters can be off."""
        given = {name: batch[name] for name in self.inputs}
        if self.copy is not None:
            return self.copy.to(batch["input_ids"].device)(**given)
        was_training = model.training
        try:
            with model.eval().disable_adapter():
                return model(**given)
        finally:
            model.train(was_training)


def with_reference(batch: dict, outputs) -> dict:
    """A preference batch whose reference numbers, of answers and of both stages' targets, are those of `outputs`.

    Where a region is padded they are 0, as in the cached ones.
    """
    found = {"ref_logps": outputs.logps.float()}
    for stage in STAGES:
        target, pixels = batch[f"stage{stage}_preferred_target"], batch[f"stage{stage}_region_pixels"]
        logits = outputs.mask_logits.flatten(1).float()[target].gather(1, pixels)
        found[f"stage{stage}_region_ref_logits"] = logits * (batch[f"stage{stage}_region_signs"] != 0)
        if len(target):
            candidates = batch[f"stage{stage}_candidates"].clone()
            candidates[:, 0] = outputs.embeddings[target].to(candidates)
            found[f"stage{stage}_candidates"] = candidates
    return batch | found
