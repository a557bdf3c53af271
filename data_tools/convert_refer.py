"""Convert RefCOCO, RefCOCO+, RefCOCOg, RefCLEF or gRefCOCO to the popen schema.

    python data_tools/convert_refer.py SRC OUT --dataset refcoco --split-by unc [--splits val testA] [--images DIR]

SRC is the folder refer_seg with refcoco/refs(unc).p and refcoco/instances.json (grefcoco/grefs(unc).json), and the
pictures under images/; OUT receives a split of each name. Without --splits, all there.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
from tqdm import tqdm

from popen.data.refer import (
    IMAGES,
    SPLIT_BY,
    Instances,
    Reference,
    by_image,
    in_split,
    read_instances,
    read_references,
    refer_row,
    split_names,
)
from popen.data.safe_io import MAX_PIXELS, DataError, StorageError
from popen.data.schema import write_dataset


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path, metavar="SRC", help="folder with refcoco/, refcoco+/, ... and images/")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the splits")
    parser.add_argument("--dataset", required=True, choices=SPLIT_BY, help="the folder in SRC")
    parser.add_argument("--split-by", help="unc, umd, google or berkeley; without it, the first that exists")
    parser.add_argument("--splits", nargs="+", help="train, val, test, testA, ...; without it, those there")
    parser.add_argument("--images", type=Path, help="folder of the pictures, if not the usual one in SRC")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger pictures")
    args = parser.parse_args(argv)
    split_by, images = args.split_by or SPLIT_BY[args.dataset][0], args.images or args.src / IMAGES[args.dataset]
    datasets.disable_progress_bars()  # ours shows the same rows
    try:
        references = read_references(args.src / args.dataset, args.dataset, split_by)
        chosen = {split: in_split(references, split) for split in args.splits or split_names(references)}
        instances = read_instances(args.src / args.dataset / "instances.json")
        for split, of_split in chosen.items():
            convert(instances, of_split, args.dataset, images, args.out, split, args.max_pixels)
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def convert(
    instances: Instances,
    references: Sequence[Reference],
    dataset: str,
    images: Path,
    out: Path,
    split: str,
    max_pixels: int,
) -> None:
    """Write one split and print its counts."""
    groups, kinds = by_image(references), Counter[str]()

    def rows() -> Iterator[dict]:
        for of_image in tqdm(groups.values(), desc=split, unit="image"):
            row = refer_row(instances, of_image, dataset, images, max_pixels)
            kinds.update(question["kind"] for question in row["questions"])
            yield row

    write_dataset(rows(), out, split)
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    print(f"{split}: {len(groups)} images, {len(references)} references, {kinds.total()} questions ({counts})")


if __name__ == "__main__":
    sys.exit(main())
