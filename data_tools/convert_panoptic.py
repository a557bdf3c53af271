"""Convert COCO panoptic annotations to the popen schema.

    python data_tools/convert_panoptic.py SRC OUT [--seed 0] [--dev 0.2] [--max-pixels 50000000]

SRC holds panoptic.json, images/ and panoptic/; OUT receives train/ and dev/. About 60 images a second on one core.
"""

import argparse
import sys
from pathlib import Path

import datasets

from popen.data.conversion import Converted, convert_split
from popen.data.panoptic import in_dev, panoptic_row, read_panoptic
from popen.data.safe_io import MAX_PIXELS, DataError, StorageError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path, metavar="SRC", help="folder with panoptic.json, images/ and panoptic/")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the splits")
    parser.add_argument("--seed", type=int, default=0, help="seed of wordings, sides and absent things")
    parser.add_argument("--dev", type=float, default=0.2, help="fraction of the images held out (by hash), 0..1")
    parser.add_argument("--uses", action="store_true", help="also ask about uses and relations")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger pictures")
    args = parser.parse_args(argv)
    if not 0 <= args.dev <= 1:
        parser.error(f"--dev {args.dev}: must lie in 0..1")
    datasets.disable_progress_bars()  # ours shows the same rows
    try:
        data = read_panoptic(args.src / "panoptic.json")
        for split in ("train", "dev"):
            ids = [number for number in sorted(data.images) if in_dev(number, args.dev) == (split == "dev")]
            if not ids:
                print(f"{split}: no images")
                continue

            def converted(number: int) -> Converted:
                return Converted(panoptic_row(data, number, args.src, args.seed, args.max_pixels, args.uses))

            print("\n".join(convert_split(ids, converted, args.out, split).lines()))
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
