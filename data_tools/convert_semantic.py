"""Convert semantic segmentation sets to the popen schema: questions by category, as LISA and PixelLM train on them.

    python data_tools/convert_semantic.py ade20k ADEChallengeData2016 OUT
    python data_tools/convert_semantic.py cocostuff IMAGES LABELS OUT --classes labels.txt --split train
    python data_tools/convert_semantic.py labels IMAGES LABELS OUT --name camvid --classes classes.txt --ignore Void
    python data_tools/convert_semantic.py paco_lvis paco_lvis_v1_train.json COCO OUT --split train
    python data_tools/convert_semantic.py pascal_part train.json VOC2010/JPEGImages OUT --split train

ade20k has its own splits and class list (objectInfo150.txt); cocostuff takes a folder of pictures, one of label PNGs,
and leaves out the classes with a hyphen, as LISA does; labels is any such pair of folders, with a class list in one of
the forms of popen/data/class_list.py. About 40 pictures a second on one core.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import datasets

from popen.data.class_list import ClassList, read_class_list, words
from popen.data.conversion import Conversion, convert_split
from popen.data.parts import part_row, read_parts
from popen.data.safe_io import MAX_PIXELS, DataError, StorageError
from popen.data.semantic import labelled_pictures, semantic_row

ADE20K_SPLITS = {"train": "training", "val": "validation"}
VOID = {"void", "unlabeled", "unlabelled", "ignore"}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    datasets.disable_progress_bars()  # ours shows the same rows
    try:
        args.run(args)
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _ade20k(args: argparse.Namespace) -> None:
    classes = read_class_list(args.classes or args.src / "objectInfo150.txt")
    if 0 in classes.names:  # a plain list of the 150 names; 0 in the PNG is none of them
        classes = ClassList({label + 1: name for label, name in classes.names.items()})
    for split, folder in ADE20K_SPLITS.items():
        _labels(args, args.src / "images" / folder, args.src / "annotations" / folder, classes, {0}, split, "ade20k")


def _cocostuff(args: argparse.Namespace) -> None:
    listed = read_class_list(args.classes)
    first = 1 if words(listed.names.get(0, "")) in VOID else 0  # the PNGs count from the class after "unlabeled"
    classes = ClassList({label - first: name for label, name in listed.names.items() if label >= first})
    ignored = {255} | {label for label, name in classes.names.items() if "-" in name}
    _labels(args, args.images, args.labels, classes, ignored, args.split, "cocostuff")


def _folders(args: argparse.Namespace) -> None:
    classes = read_class_list(args.classes)
    ignored = {label for label, name in classes.names.items() if words(name) in VOID}
    for given in args.ignore:
        named = {label for label, name in classes.names.items() if name == given or words(name) == words(given)}
        if not named and not given.isdecimal():
            raise DataError(f"--ignore {given}: no such class in {args.classes}; give a name in it or a number")
        ignored |= named or {int(given)}
    _labels(args, args.images, args.labels, classes, ignored, args.split, args.name)


def _labels(args, images: Path, labels: Path, classes: ClassList, ignored: set[int], split: str, name: str) -> None:
    pairs, left_out = labelled_pictures(images, labels, getattr(args, "suffix", ""))
    source = f"{name}/{split}"  # so that pictures of one name in two splits keep apart
    make = partial(
        semantic_row,
        source=source,
        classes=classes,
        ignored=ignored,
        seed=args.seed,
        max_pixels=args.max_pixels,
        uses=getattr(args, "uses", False),
    )
    _convert(args, pairs, make, split)
    for reason, count in left_out.items():
        print(f"  left out: {count} {reason}")


def _parts(args: argparse.Namespace) -> None:
    data = read_parts(args.json, f"{args.source}/{args.split}")
    make = partial(part_row, data, root=args.images, seed=args.seed, max_pixels=args.max_pixels)
    _convert(args, sorted(data.images), make, args.split)


def _convert(args: argparse.Namespace, records: Sequence, make: Callable, split: str) -> None:
    made: Conversion = convert_split(records, make, args.out, split, args.most_bad)
    print("\n".join(made.lines()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = parser.add_subparsers(required=True, metavar="SET")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=int, default=0, help="seed of what is asked and of the wordings")
    shared.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger pictures")
    shared.add_argument("--most-bad", type=int, default=0, metavar="N", help="leave out up to N bad pictures, named")

    def add(name: str, run: Callable[[argparse.Namespace], None], what: str, *places: str) -> argparse.ArgumentParser:
        one = sets.add_parser(name, parents=[shared], help=what)
        for place in (*places, "out"):
            one.add_argument(place, type=Path, metavar=place.upper())
        one.set_defaults(run=run, source=name)
        return one

    ade = add("ade20k", _ade20k, "ADE20K's 150 classes", "src")
    ade.add_argument("--classes", type=Path, help="class list; SRC/objectInfo150.txt by default")
    stuff = add("cocostuff", _cocostuff, "COCO-Stuff, pixel maps", "images", "labels")
    anything = add("labels", _folders, "a folder of pictures and one of label PNGs", "images", "labels")
    anything.add_argument("--name", required=True, help="name of the data set, first in the ids")
    anything.add_argument("--ignore", nargs="*", default=[], metavar="CLASS", help="names or numbers of nothing")
    anything.add_argument("--uses", action="store_true", help="also ask about uses and relations")
    anything.add_argument("--suffix", default="", help="what label names have beyond picture names, such as _L")
    for one in (stuff, anything):
        one.add_argument("--classes", type=Path, required=True, help="class list of the data set")
    parts = [add(name, _parts, what, "json", "images") for name, what in PART_SETS.items()]
    for one in (stuff, anything, *parts):
        one.add_argument("--split", default="train", help="name of the split to write")
    return parser


PART_SETS = {"paco_lvis": "PACO-LVIS, objects and their parts", "pascal_part": "Pascal-Part, as VLPart prepares it"}


if __name__ == "__main__":
    sys.exit(main())
