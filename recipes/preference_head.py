"""Trains a model's preference head on segmentation preferences mined from it, for the ensemble.

    python recipes/preference_head.py --model_name_or_path runs/popen_policy --preferences runs/mined_popen \
        --output_dir runs/popen

Half a minute on two cores: the pixel evidence was written when the preferences were mined. A tenth of the targets is
held out; the head's pair accuracy on them is printed.
"""

from dataclasses import dataclass, field

import torch

from popen.distributed.cores import use_all_cores
from popen.lvlm.loading import load_model
from popen.lvlm.mining import load_mined
from popen.preference.reference import check_fingerprint, model_fingerprint
from popen.recipe import run
from popen.training.preference_head import head_tensors, pair_accuracy, train_head


@dataclass
class HeadArguments:
    """Arguments of the recipe."""

    model_name_or_path: str = field(metadata={"help": "The model folder that was mined; its head is replaced."})
    preferences: str = field(metadata={"help": "Folder that recipes/mine.py wrote for this model."})
    output_dir: str = field(metadata={"help": "Where the model with its trained head goes."})
    steps: int = field(default=1500, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=128, metadata={"help": "Targets per step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    margin: float = field(default=0.02, metadata={"help": "Least IoU gap of a pair."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and order."})


def main(args: HeadArguments) -> None:
    torch.manual_seed(args.seed)
    use_all_cores()
    _, seg, report = load_mined(args.preferences)
    check_fingerprint(report["model"], model_fingerprint(args.model_name_or_path), "model", args.preferences)
    model, processor = load_model(args.model_name_or_path)
    evidence, ious = head_tensors(seg, model.config.scales)
    held_out = max(len(ious) // 10, 1)
    model.preference_head.reset_parameters()
    train_head(
        model.preference_head, evidence[held_out:], ious[held_out:],
        args.steps, args.batch_size, args.learning_rate, args.margin, args.seed,
    )  # fmt: skip
    accuracy = pair_accuracy(model.preference_head, evidence[:held_out], ious[:held_out], args.margin)
    print(f"pair accuracy on {held_out} held-out targets: {accuracy:.3f}")
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    run(main, HeadArguments)
