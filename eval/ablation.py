"""Runs arms of a study side by side on an equal budget and records one line per arm, seed and question.

    python -m eval.ablation --config eval/ablations/popen.yaml

Every arm is tried at every learning rate with the first seed; the rate with the best cIoU on the tuning split is its
own. With `test_split` every seed is then trained at that rate and scored there. What is done is not done again, so a
stopped study goes on. `python -m eval.ablation_tables --study DIR` makes the tables.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from eval.ablation_arms import ARMS
from eval.ablation_training import train_arm
from eval.arms import Arms, calibrated_thresholds
from eval.metrics import MaskCounts, ciou
from eval.segmentation import parts, score
from popen.data.safe_io import DataError
from popen.data.schema import load_split
from popen.distributed.cores import use_all_cores
from popen.lvlm.loading import load_model
from popen.preference.hallucination import name_pattern
from popen.preference.pair_selection import Selection
from popen.recipe import run


@dataclass
class AblationArguments:
    """What is compared, on what, and with which budget."""

    model_name_or_path: str = field(metadata={"help": "The base model folder; its preferences are used."})
    preferences: str = field(metadata={"help": "Folder that recipes/mine.py wrote for it."})
    dataset: str = field(metadata={"help": "Folder of the data set that was mined."})
    scored: str = field(metadata={"help": "Folder of the data set with the splits to calibrate, tune and test on."})
    output_dir: str = field(metadata={"help": "Where models and rows go."})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Names of `eval.ablation_arms`."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds."})
    learning_rates: list[float] = field(
        default_factory=lambda: [3e-5], metadata={"help": "Tried for every arm, the control among them."}
    )
    max_steps: int = field(default=200, metadata={"help": "Optimiser steps of every run."})
    batch_size: int = field(default=8, metadata={"help": "Pairs, and pictures, per step."})
    text_pairs: Selection = field(default="hallucinated", metadata={"help": "As in recipes/preference.py."})
    refresh_rows: int = field(
        default=4096, metadata={"help": "Pictures that arms with several rounds mine again, the first ones."}
    )
    calibration_split: str = field(default="calibration", metadata={"help": "Split of the mask thresholds."})
    tuning_split: str = field(default="dev", metadata={"help": "Split that learning rates are chosen on."})
    test_split: str | None = field(default=None, metadata={"help": "Split of the final table; opened once."})
    tuning_rows: int | None = field(default=None, metadata={"help": "At most this many pictures of the tuning split."})
    max_rows: int | None = field(default=None, metadata={"help": "At most this many pictures of a scored split."})

    def __post_init__(self):
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown:
            raise DataError(f"arms: {unknown[0]} is not one of {', '.join(ARMS)}")
        if not self.seeds or not self.learning_rates:
            raise DataError("seeds and learning_rates: give at least one of each")


def main(args: AblationArguments) -> None:
    use_all_cores()
    tried = [(arm, rate) for arm in args.arms for rate in args.learning_rates]
    for arm, rate in tqdm(tried, desc="tuning", unit="run"):
        scored_run(args, arm, rate, args.seeds[0], args.tuning_split)
    if args.test_split is None:
        return
    chosen = [(arm, best_rate(args, arm), seed) for arm in args.arms for seed in args.seeds]
    for arm, rate, seed in tqdm(chosen, desc="final", unit="run"):
        scored_run(args, arm, rate, seed, args.test_split)


def best_rate(args: AblationArguments, arm: str) -> float:
    """The learning rate with the best cIoU on the tuning split; the smallest of equal ones."""
    found = []
    for rate in args.learning_rates:
        rows = [json.loads(line) for line in scored_run(args, arm, rate, args.seeds[0], args.tuning_split)]
        found.append((ciou([MaskCounts(*c) for row in rows for c in row["counts"]]), -rate))
    return -max(found)[1]


def scored_run(args: AblationArguments, arm: str, rate: float, seed: int, split: str) -> list[str]:
    """The rows of one run on one split, as JSON lines; trained and scored where that was not done before."""
    folder = Path(args.output_dir) / arm / f"{rate:g}" / str(seed)
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        if not (folder / "popen_processor.json").is_file():
            train_arm(
                ARMS[arm], args.model_name_or_path, args.preferences, args.dataset, args.text_pairs, args.refresh_rows,
                folder, args.max_steps, seed, learning_rate=rate, per_device_train_batch_size=args.batch_size,
            )  # fmt: skip
        rows = evaluate(args, folder, split)
        named = [{"arm": arm, "learning_rate": rate, "seed": seed} | row for row in rows]
        work = file.with_suffix(".tmp")
        work.write_text("".join(json.dumps(row) + "\n" for row in named))
        work.rename(file)
    return file.read_text().splitlines()


def evaluate(args: AblationArguments, folder: Path, split: str) -> list[dict]:
    """Free generation on a split with a threshold of the run's own: one row per question."""
    model, processor = load_model(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    held_out = load_split(args.scored, args.calibration_split)
    single = Arms()
    thresholds = calibrated_thresholds(
        model, processor, parts(held_out, min(200, len(held_out)), "calibration"), single
    )
    rows = load_split(args.scored, split)
    most = [len(rows), args.max_rows, args.tuning_rows if split == args.tuning_split else None]
    count = min(limit for limit in most if limit is not None)
    vocabulary = name_pattern({name for names in rows["objects"][:] for name in names})
    found = []
    for samples in parts(rows, count, split):
        found += score(model, processor, samples, vocabulary, thresholds, single, batch_size=128)
    return [{key: value for key, value in row.items() if key != "arms"} | row["arms"]["single"] for row in found]


if __name__ == "__main__":
    run(main, AblationArguments)
