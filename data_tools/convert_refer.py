"""Convert RefCOCO, RefCOCO+, RefCOCOg, RefCLEF or gRefCOCO to the popen schema.

    python data_tools/convert_refer.py SRC OUT --dataset refcoco --split-by unc [--splits val testA] [--images DIR]

SRC is the folder refer_seg with refcoco/refs(unc).p and refcoco/instances.json (grefcoco/grefs(unc).json), and the
pictures under images/; OUT receives a split of each name. Without --splits, all there.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets

from popen.data.conversion import Converted, convert_split
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
    source_of,
    split_names,
)
from popen.data.safe_io import MAX_PIXELS, DataError, StorageError


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
            convert(instances, of_split, source_of(args.dataset, split_by), images, args.out, split, args.max_pixels)
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def convert(
    instances: Instances,
    references: Sequence[Reference],
    source: str,
    images: Path,
    out: Path,
    split: str,
    max_pixels: int,
) -> None:
    """Write one split and print its counts."""

    def converted(of_image: Sequence[Reference]) -> Converted:
        return Converted(refer_row(instances, of_image, source, images, max_pixels))

    made = convert_split(list(by_image(references).values()), converted, out, split)
    print(f"{split}: {len(references)} references")
    print("\n".join(made.lines()))


if __name__ == "__main__":
    sys.exit(main())
