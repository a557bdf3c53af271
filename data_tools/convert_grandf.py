"""Convert GranD_f, GLaMM's grounded captions, to the popen schema.

    python data_tools/convert_grandf.py GranDf_HA_GCG_train.json GranDf_HA_images/train OUT --name grandf
    python data_tools/convert_grandf.py OpenPsgGCG_train.json coco_2017/train2017 OUT --name psg_gcg
    python data_tools/convert_grandf.py RefCOCOg_GCG_train.json coco_2014/train2014 OUT --name refcocog_gcg
    python data_tools/convert_grandf.py flickr_mergedGT_GCG_train.json flikcr_30k/train OUT --name flickr_gcg
    python data_tools/convert_grandf.py val_gcg_coco_caption_gt.json GranDf_HA_images/val_test OUT --name grandf \\
        --split val --masks val_gcg_coco_mask_gt.json

Give each source its own OUT and mix them in training (`dataset: [...]`, `rates: [...]` of recipes/sft.py).
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import datasets

from popen.data.conversion import convert_split
from popen.data.grandf import grandf_row, read_grandf
from popen.data.safe_io import MAX_PIXELS, DataError, StorageError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, metavar="JSON", help="captions, in any of the forms above")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of the pictures it names")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the split")
    parser.add_argument("--name", required=True, help="name of the source, first in the ids")
    parser.add_argument("--split", default="train", help="name of the split to write")
    parser.add_argument("--masks", type=Path, help="masks of an evaluation split")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger pictures")
    parser.add_argument("--most-bad", type=int, default=0, metavar="N", help="leave out up to N bad pictures, named")
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()  # ours shows the same rows
    try:
        pictures, left_out = read_grandf(args.json, args.masks)
        source = f"{args.name}/{args.split}"
        make = partial(grandf_row, root=args.images, source=source, max_pixels=args.max_pixels)
        made = convert_split(pictures, make, args.out, args.split, args.most_bad)
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(made.lines()))
    for reason, count in sorted(left_out.items()):
        print(f"  left out: {count} {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
