"""Writes a model's mask threshold and embedding spread into its configuration, found on held-out data.

    python recipes/calibrate.py --model_name_or_path runs/popen --dataset runs/scenes --split calibration

With `--ensemble K`, also the ensemble: how much better than the model's own another answer must score, how sharply the
ensemble attends to the preferred hypotheses of a mask, and a threshold of its own.

A minute on two cores for 200 pictures. Use a split that is neither trained on nor reported.
"""

import math
from dataclasses import dataclass, field

import torch

from popen.data.schema import Sample, load_split
from popen.lvlm.calibration import (
    best_answer_margin,
    best_ensemble,
    best_threshold,
    embedding_spread,
    truth_drafts,
)
from popen.lvlm.inference import restored_masks
from popen.lvlm.lengths import check_lengths
from popen.lvlm.loading import load_model
from popen.recipe import run


@dataclass
class CalibrationArguments:
    """What to calibrate and on what."""

    model_name_or_path: str = field(metadata={"help": "A popen model folder; its config.json is rewritten."})
    dataset: str = field(metadata={"help": "Folder of a data set in popen's schema."})
    split: str = field(default="calibration", metadata={"help": "Split to calibrate on."})
    max_rows: int = field(default=200, metadata={"help": "At most this many pictures."})
    views: int = field(default=0, metadata={"help": "Shifted views of the picture that the ensemble looks at."})
    ensemble: int = field(
        default=0, metadata={"help": "K: also calibrate the ensemble of a model whose preference head is trained."}
    )


def main(args: CalibrationArguments) -> None:
    model, processor = load_model(args.model_name_or_path)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    rows = load_split(args.dataset, args.split)
    rows = rows.select(range(min(args.max_rows, len(rows))))
    check_lengths(processor, rows)
    samples = [Sample.from_row(row) for row in rows]
    drafts = truth_drafts(model, processor, samples)
    model.config.embedding_std = embedding_spread(drafts)
    config = model.config
    config.mask_threshold, ciou = best_threshold(samples, restored_masks(model, drafts))
    print(f"mask threshold {config.mask_threshold:+.2f}: forced cIoU {ciou:.4f} on {len(samples)} pictures")
    if args.ensemble:
        config.ensemble_views = args.views
        margin = best_answer_margin(model, processor, samples, args.ensemble, args.views)
        config.answer_margin = margin if math.isfinite(margin) else None
        print(f"another answer must score {margin:g} nats better than the model's own")
        config.ensemble_sharpness, config.ensemble_threshold, ciou = best_ensemble(
            model, processor, samples, drafts, args.ensemble, args.views
        )
        print(
            f"ensemble of {args.ensemble}, {args.views} views: sharpness {config.ensemble_sharpness:g}, "
            f"threshold {config.ensemble_threshold:+.2f}: forced cIoU {ciou:.4f}"
        )
    config.save_pretrained(args.model_name_or_path)
    print(f"embedding spread per scale {[round(s, 4) for s in model.config.embedding_std]}")


if __name__ == "__main__":
    run(main, CalibrationArguments)
