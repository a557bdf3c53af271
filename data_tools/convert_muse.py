"""Convert MUSE, PixelLM's multi-target reasoning set, to the popen schema.

    python data_tools/convert_muse.py SRC IMAGES OUT [--most-bad N]

SRC holds MUSE_train.json, MUSE_val.json and so on; each becomes the split of its name, MUSE_test_many.json test_many.
IMAGES is COCO's folder of train2014, train2017 and val2017. About 30 pictures a second on one core.
"""

import argparse
import re
import sys
from functools import partial
from pathlib import Path

import datasets

from popen.data.conversion import convert_split
from popen.data.muse import muse_row, read_muse
from popen.data.safe_io import MAX_PIXELS, DataError, StorageError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path, metavar="SRC", help="folder of the json files")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder with train2014, train2017 and val2017")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the splits")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger pictures")
    parser.add_argument("--most-bad", type=int, default=0, metavar="N", help="leave out up to N bad pictures, named")
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()  # ours shows the same rows
    try:
        files = sorted(file for file in args.src.glob("*.json") if file.stem.lower().startswith("muse_"))
        if not files:
            raise DataError(f"{args.src}: no MUSE_*.json in it; check the path or fetch the files")
        for file in files:
            split = re.sub(r"\W", "_", file.stem[len("muse_") :].lower())
            pictures, left_out = read_muse(file)
            make = partial(muse_row, root=args.images, split=split, max_pixels=args.max_pixels)
            made = convert_split(pictures, make, args.out, split, args.most_bad)
            print("\n".join(made.lines()))
            for reason, count in sorted(left_out.items()):
                print(f"  left out: {count} {reason}")
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
