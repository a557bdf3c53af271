"""Convert visual instructions in LLaVA's format to the popen schema: the words of a mixture, without masks.

    python data_tools/convert_llava.py SRC IMAGES OUT [--split train] [--most-bad N]

SRC is llava_instruct_150k.json or another file of `image` and `conversations`, IMAGES the folder of its pictures
(COCO's train2017). Each turn becomes a question of its own, without what was said before.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import datasets

from popen.data.conversion import convert_split
from popen.data.instructions import instructed_row, read_instructions
from popen.data.safe_io import MAX_PIXELS, DataError, StorageError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path, metavar="SRC", help="the json file")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of the pictures")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the split")
    parser.add_argument("--split", default="train", help="name of the split; %(default)s by default")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger pictures")
    parser.add_argument("--most-bad", type=int, default=0, metavar="N", help="leave out up to N bad pictures, named")
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()  # ours shows the same rows
    try:
        pictures, left_out = read_instructions(args.src)
        make = partial(instructed_row, images=args.images, split=args.split, max_pixels=args.max_pixels)
        made = convert_split(pictures, make, args.out, args.split, args.most_bad)
        print("\n".join(made.lines()))
        for reason, count in sorted(left_out.items()):
            print(f"  left out: {count} {reason}")
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
