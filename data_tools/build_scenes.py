"""Render the scenes dataset: train, dev and test splits in the popen schema.

    python data_tools/build_scenes.py --out runs/scenes --train 48000 --calibration 300 --dev 1000 --test 1000

Under two minutes on two cores. The bytes do not depend on --workers; a split that holds these very scenes already is
kept.
"""

import argparse
import io
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from popen.data.dusk import at_dusk
from popen.data.safe_io import DataError, StorageError
from popen.data.scene_questions import sample
from popen.data.scenes import BASE_SIZE, SPLIT_SEEDS
from popen.data.schema import Sample, load_split, write_dataset


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for the splits")
    for split, seeds in SPLIT_SEEDS.items():
        parser.add_argument(f"--{split}", type=int, default=0, help=f"scenes of {split}, 0..{len(seeds)}")
    parser.add_argument("--size", type=int, default=BASE_SIZE, help="side of the images in pixels, at least 48")
    parser.add_argument("--offset", type=int, default=0, help="skip this many seeds of each split")
    parser.add_argument("--dusk", action="store_true", help="the scenes as a small sensor takes them at dusk")
    parser.add_argument("--workers", type=int, default=2, help="processes, at least 1")
    args = parser.parse_args(argv)
    if args.size < 48 or args.offset < 0 or args.workers < 1:
        parser.error("--size must be at least 48, --offset 0 or more, --workers at least 1")
    for split, seeds in SPLIT_SEEDS.items():
        if getattr(args, split) < 0 or args.offset + getattr(args, split) > len(seeds):
            parser.error(f"--{split} {getattr(args, split)} from --offset {args.offset}: there are {len(seeds)} seeds")
    datasets.disable_progress_bars()  # ours shows the same rows
    try:
        for split, seeds in SPLIT_SEEDS.items():
            chosen = seeds[args.offset : args.offset + getattr(args, split)]
            if not chosen:
                continue
            if _is_there(args.out, split, chosen, args.size, args.dusk):
                print(f"{split}: {len(chosen)} scenes are there already; kept")
                continue
            kinds: Counter[str] = Counter()
            write_dataset(
                _counted(rows(chosen, args.size, args.workers, args.dusk), len(chosen), split, kinds), args.out, split
            )
            counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
            print(f"{split}: {len(chosen)} scenes, {kinds.total()} questions ({counts})")
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def rows(seeds: Iterable[int], size: int, workers: int, dusk: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of the seeds' scenes in order, drawn by `workers` processes."""
    draw = partial(scene_row, size=size, dusk=dusk)
    if workers == 1:
        yield from map(draw, seeds)
        return
    # spawn: a fork of a process with threads (arrow's, torch's) can hang
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(draw, seeds, chunksize=32)


def scene_row(seed: int, size: int, dusk: bool = False) -> dict[str, Any]:
    """Return the row of one scene, its image as PNG bytes."""
    row = drawn(seed, size, dusk).to_row()
    png = io.BytesIO()
    row["image"].save(png, format="PNG", compress_level=4)
    return {**row, "image": {"bytes": png.getvalue(), "path": None}}


def drawn(seed: int, size: int, dusk: bool) -> Sample:
    """Return the scene of a seed, by day or at dusk; its questions and masks are the same."""
    scene = sample(seed, size)
    if not dusk:
        return scene
    return replace(scene, image=Image.fromarray(at_dusk(np.asarray(scene.image), seed)))


def _counted(made: Iterator[dict[str, Any]], total: int, split: str, kinds: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in tqdm(made, desc=split, unit="scene", total=total):
        kinds.update(question["kind"] for question in row["questions"])
        yield row


def _is_there(out: Path, split: str, seeds: range, size: int, dusk: bool) -> bool:
    """Whether the split holds these scenes: as many, and the first and the last as they would be drawn now."""
    try:
        there = load_split(out, split)
    except DataError:
        return False
    if len(there) != len(seeds):
        return False
    ends = Sample.from_row(there[0]), Sample.from_row(there[len(there) - 1])
    return all(_same(end, drawn(seed, size, dusk)) for end, seed in zip(ends, (seeds[0], seeds[-1]), strict=True))


def _same(a: Sample, b: Sample) -> bool:
    return a.image.tobytes() == b.image.tobytes() and replace(a, image=b.image) == b


if __name__ == "__main__":
    sys.exit(main())
