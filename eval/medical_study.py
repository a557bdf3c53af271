"""Preference recipes side by side on one data set with few labels: same base, same steps, several labelled subsets.

    python -m eval.medical_study --config eval/ablations/polyps.yaml

Pictures are drawn on a square canvas and kept in memory. Every arm keeps the average of its weights at the last step,
and its threshold is calibrated on dev. One JSON line per arm, subset, and test picture, with and without flips at
inference; `python -m eval.medical_tables --study DIR` makes the tables. What is done is not done again.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm.auto import tqdm

from eval.medical_study_arms import ARMS
from eval.medical_training import Budget, Picture, calibrated_threshold, predictions, train_arm, train_base
from popen.data.safe_io import DataError
from popen.medical.segmenter import SegmenterConfig
from popen.preference.mask_judging import dice_with_truth
from popen.recipe import run
from popen.training.callbacks import use_all_cores


@dataclass
class StudyArguments:
    """Data, network, budget and arms."""

    train: str = field(metadata={"help": "Folder with images/ and masks/ that all splits come from."})
    output_dir: str = field(metadata={"help": "Where models, rows and reports go."})
    test: str | None = field(default=None, metadata={"help": "A second folder, all of which is tested on."})
    size: int = field(default=128, metadata={"help": "Side of the canvas in pixels."})
    labelled: int = field(default=80, metadata={"help": "Pictures with labels, drawn by subset seed."})
    pool: int = field(default=400, metadata={"help": "Pictures whose labels only a declared judge may see."})
    dev: int = field(default=100, metadata={"help": "Pictures that thresholds are calibrated on; never reported."})
    subsets: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the labelled subsets."})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "Names of eval.medical_study_arms."})
    network: str = field(default="unet", metadata={"help": "As in popen.medical.networks."})
    channels: list[int] = field(default_factory=lambda: [16, 32, 64, 128], metadata={"help": "Of the network."})
    dropout: float = field(default=0.1, metadata={"help": "Rate in the network."})
    base_steps: int = field(default=600, metadata={"help": "Supervised steps before every arm."})
    steps: int = field(default=240, metadata={"help": "Steps of every arm."})
    base_learning_rate: float = field(default=1e-3, metadata={"help": "Of the base."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Of the arms."})
    batch_size: int = field(default=8, metadata={"help": "Labelled pictures, and as many of the pool, per step."})

    def __post_init__(self):
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown:
            raise DataError(f"arms: {unknown[0]} is not one of {', '.join(ARMS)}")


def main(args: StudyArguments) -> None:
    use_all_cores()
    pictures = load(args.train, args.size)
    order = list(range(len(pictures)))
    random.Random(2026).shuffle(order)
    need = args.dev + args.labelled + args.pool
    if need >= len(order):
        raise DataError(f"{args.train}: {len(order)} pictures; dev, labelled and pool take {need} and leave no test")
    dev, rest = [pictures[i] for i in order[: args.dev]], order[args.dev :]
    trained, held = rest[: args.labelled + args.pool], rest[args.labelled + args.pool :]
    test = [pictures[i] for i in held] + (load(args.test, args.size) if args.test else [])
    print(f"{args.labelled} labelled, {args.pool} in the pool, {len(dev)} dev, {len(test)} test pictures")
    for subset in args.subsets:
        drawn = list(trained)
        random.Random(subset).shuffle(drawn)
        labelled = [pictures[i] for i in drawn[: args.labelled]]
        pool = [pictures[i] for i in drawn[args.labelled :]]
        run_subset(args, subset, labelled, pool, dev, test)


def run_subset(args, subset, labelled, pool, dev, test) -> None:
    folder = Path(args.output_dir) / f"subset{subset}"
    folder.mkdir(parents=True, exist_ok=True)
    config = SegmenterConfig(
        network=args.network, spatial_dims=2, in_channels=3, regions=("foreground",), activation="sigmoid",
        patch_size=(args.size, args.size), dropout=args.dropout, options={"channels": tuple(args.channels)},
    )  # fmt: skip
    budget = Budget(args.steps, args.batch_size, args.learning_rate, subset)
    base = train_base(
        config, labelled, folder / "base", args.base_steps, args.batch_size, args.base_learning_rate, subset
    )
    report(folder, "base", base, dev, test)
    for name in tqdm(args.arms, desc=f"subset {subset}", unit="arm"):
        if (folder / f"{name}.jsonl").is_file():
            continue
        model, mined = train_arm(ARMS[name], base, labelled, pool, folder / name, budget)
        report(folder, name, model, dev, test)
        (folder / f"{name}.json").write_text(json.dumps(mined, indent=1) + "\n")


def report(folder: Path, name: str, model, dev: list[Picture], test: list[Picture]) -> None:
    """Rows of every test picture, with and without flips, each at its own threshold."""
    file = folder / f"{name}.jsonl"
    if file.is_file():
        return
    lines = []
    for flips in (False, True):
        threshold = calibrated_threshold(model, dev, flips)
        logits = predictions(model, test, flips)
        for picture, own in zip(test, logits, strict=True):
            dice = float(dice_with_truth((own > threshold)[None], picture.masks)[0])
            row = {"arm": name, "flips": flips, "case": picture.name, "dice": dice, "threshold": threshold}
            lines.append(json.dumps(row))
    work = file.with_suffix(".tmp")
    work.write_text("\n".join(lines) + "\n")
    work.rename(file)


def load(folder: str, size: int) -> list[Picture]:
    import numpy as np
    from PIL import Image

    found = []
    for file in sorted(Path(folder, "images").iterdir()):
        image = Image.open(file).convert("RGB").resize((size, size), Image.BILINEAR)
        mask = Image.open(Path(folder, "masks", file.name)).convert("L").resize((size, size), Image.BILINEAR)
        x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        found.append(Picture(f"{Path(folder).name}/{file.stem}", x, torch.from_numpy(np.asarray(mask) > 127)[None]))
    return found


if __name__ == "__main__":
    run(main, StudyArguments)
