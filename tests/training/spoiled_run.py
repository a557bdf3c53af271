"""A training whose second process meets numbers that are not finite, for tests of engines that split weights."""

import hashlib
import json
import os
from pathlib import Path

from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from popen.data.schema import load_split
from popen.lvlm.loading import load_model
from popen.training import SegmentationSFTTrainer, SFTArguments

RANK = "RANK"


class Spoiled(SegmentationSFTTrainer):
    """Spoils on the second process: a loss in step 2, then gradients, three steps in a row."""

    def watch(self, loss):
        last = len(self.finite_steps._bad_losses) == self.args.gradient_accumulation_steps - 1
        if os.environ[RANK] == "1" and not last:
            if self.state.global_step == 1:
                loss.data.fill_(float("nan"))
            if self.state.global_step > 2:
                loss.register_hook(lambda gradient: gradient * float("inf"))
        super().watch(loss)


class Digests(TrainerCallback):
    """Hashes this process's share of the weights after each step."""

    def __init__(self):
        self.found = []

    def on_step_end(self, args, state, control, model, **kwargs):
        own = [_share(weight).detach().float().numpy().tobytes() for weight in model.parameters()]
        self.found.append(hashlib.sha256(b"".join(own)).hexdigest())


def spoiled_run(root: str, out: str, name: str, **options) -> None:
    """Trains nine steps on `root`, and writes digests, skipped steps and the last message as `out/name<rank>.json`."""
    args = SFTArguments(output_dir=f"{out}/{name}", max_steps=9, save_strategy="no", **options)
    model, processor = load_model(f"{root}/model", attn_implementation="eager")
    rows, digests, message = load_split(f"{root}/data", "train"), Digests(), ""
    trainer = Spoiled(model.train(), args, train_dataset=rows, processor=processor, callbacks=[digests])
    try:
        trainer.train()
    except FloatingPointError as error:
        message = str(error)
    skipped = [entry.get("skipped_steps") for entry in trainer.state.log_history if "loss" in entry]
    found = {"digests": digests.found, "skipped": skipped, "message": message}
    Path(f"{out}/{name}{os.environ[RANK]}.json").write_text(json.dumps(found))


def _share(weight):
    return weight.to_local() if isinstance(weight, DTensor) else getattr(weight, "ds_tensor", weight)
