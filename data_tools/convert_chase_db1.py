"""Lay out CHASE_DB1, retinal vessels that two people drew, as popen reads pictures of several annotators.

    python data_tools/convert_chase_db1.py SRC OUT

SRC holds `Image_01L.jpg`, `Image_01L_1stHO.png`, `Image_01L_2ndHO.png` and so on; OUT receives `images/`, `masks/`
(the first observer) and `masks_2/` (the second), every file as it is. The patient is the number: 'Image_(\\d+)'.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from popen.data.medical_folders import PictureCase, read_image_folder
from popen.data.safe_io import DataError, StorageError, read_bytes, storage_error, write_bytes

OBSERVERS = {"masks": "_1stHO", "masks_2": "_2ndHO"}
MOST_BYTES = 2**26


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", type=Path, metavar="SRC", help="folder with Image_NNX.jpg and both observers' masks")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for images/, masks/ and masks_2/")
    args = parser.parse_args(argv)
    try:
        convert(args.src, args.out)
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def convert(src: Path, out: Path) -> None:
    """Check every file, then copy all; DataError names the first that cannot be used, and nothing is written."""
    if out.exists():
        raise DataError(f"{out}: is there already; give a new folder")
    drawn = {folder: read_image_folder(src, ".", ".", suffix) for folder, suffix in OBSERVERS.items()}
    names = [{case.case_id for case in cases} for cases in drawn.values()]
    for name in sorted(names[0] ^ names[1]):
        lacking = OBSERVERS["masks" if name in names[1] else "masks_2"]
        raise DataError(f"{src}: no {name}{lacking}.png; add it or remove {name}")
    for cases in drawn.values():
        for case in tqdm(cases, desc="checking", unit="mask"):
            case.load()
    for folder, cases in drawn.items():
        for case in cases:
            _copy(case, out, folder)
    print(f"{out}: {len(names[0])} pictures, two masks each")


def _copy(case: PictureCase, out: Path, folder: str) -> None:
    """Write the mask of a case into its observer's folder, and beside the first one's the picture."""
    files = [(case.mask, out / folder / f"{case.case_id}{case.mask.suffix}")]
    if folder == "masks":
        files.append((case.picture, out / "images" / case.picture.name))
    for source, target in files:
        _make(target.parent)
        write_bytes(target, read_bytes(source, MOST_BYTES))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder, "convert again") from error


if __name__ == "__main__":
    sys.exit(main())
