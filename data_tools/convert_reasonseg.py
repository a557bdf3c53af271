"""Convert ReasonSeg to the popen schema.

    python data_tools/convert_reasonseg.py SRC OUT [--splits train val test] [--max-pixels 50000000]

SRC is the folder ReasonSeg with train/, val/, test/ (name.jpg and name.json) and explanatory/train.json; OUT receives
a split of each name. Without --splits, those there.
"""

import argparse
import sys
from pathlib import Path

import datasets

from popen.data.conversion import Converted, convert_split
from popen.data.reasonseg import SPLITS, Explanation, read_annotation, read_explanations, reasonseg_row, split_names
from popen.data.safe_io import MAX_PIXELS, DataError, StorageError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path, metavar="SRC", help="folder with train/, val/, test/ and explanatory/")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the splits")
    parser.add_argument("--splits", nargs="+", help="of train, val and test; without it, those there")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger pictures")
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()  # ours shows the same rows
    try:
        splits = args.splits or [split for split in SPLITS if (args.src / split).is_dir()]
        if not splits:
            raise DataError(f"{args.src}: none of {', '.join(SPLITS)} in it; check the path or run the download again")
        for split in splits:
            convert(args.src, args.out, split, args.max_pixels)
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def convert(src: Path, out: Path, split: str, max_pixels: int) -> None:
    """Write one split and print its counts, and the names of the pictures without a target."""
    names = split_names(src, split)
    explanations: dict[str, Explanation] = {}
    if split == "train":
        source = src / "explanatory" / "train.json"
        if source.exists():
            explanations = read_explanations(source)
        else:
            print(f"{split}: no {source}, hence no explanations")
        if absent := sorted(explanations.keys() - names):
            print(f"{split}: {len(absent)} explanations of pictures that are not there: {', '.join(absent)}")
    empty = [name for name in names if not read_annotation(src / split / f"{name}.json").has_target]
    if empty:
        what = "left out" if split == "train" else "kept with an empty mask, as LISA scores them"
        print(f"{split}: {len(empty)} pictures without a target, {what}: {', '.join(empty)}")
    kept = [name for name in names if split != "train" or name not in empty]

    def converted(name: str) -> Converted:
        return Converted(reasonseg_row(src / split, name, split, explanations.get(name), max_pixels))

    print("\n".join(convert_split(kept, converted, out, split).lines()))


if __name__ == "__main__":
    sys.exit(main())
