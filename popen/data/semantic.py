"""Semantic segmentation turned into questions by category: ADE20K, COCO-Stuff, CamVid and any folder of label PNGs.

Every class of a picture is one target, however many things of it there are. A class is asked of as absent in the same
words as a present one, so that the question does not give the answer away.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popen.data import rle
from popen.data.class_list import ClassList, words
from popen.data.conversion import Converted
from popen.data.further_questions import further_questions
from popen.data.panoptic import PLURAL, covers
from popen.data.safe_io import DataError, inside, read_image, read_label_png
from popen.data.schema import SEG, Question, Sample

LEAST_PIXELS = 16  # fewer of a class are noise at its border, and nobody could point at them
MOST_UNKNOWN = 0.1  # of the picture: with more of it unlabelled, a class that has no label may still be there
MOST_ASKED = 12  # classes of one picture; the row is one training sequence
PICTURES = (".jpg", ".jpeg", ".png", ".webp")

MANY = PLURAL | {"blinds", "clothes", "clouds", "eye glasses", "eyeglasses", "leaves", "waterdrops"}
ASKED = (
    "Segment the {}.",
    "Please mark the {}.",
    "Can you segment the {}?",
    "Show me the {}.",
    "Outline the {} in this picture.",
    "Which pixels belong to the {}?",
)
ASKED_IF = ("Is there any {}? Segment it.", "Are there any {}? Segment them.")  # of one name, there or not


@dataclass(frozen=True)
class Region:
    """All pixels of one name in a picture, bool (H, W); `kind` is the kind of the question about it."""

    name: str
    mask_HW: np.ndarray
    kind: str = "semantic"


@dataclass(frozen=True)
class LabelledPicture:
    """A picture and its label PNG, by file."""

    name: str
    picture: Path
    labels: Path


def questions_for(
    where: str, regions: Sequence[Region], absent: Collection[str], rng: random.Random
) -> tuple[tuple[Question, ...], Counter[str]]:
    """Ask for every region alone, for two or three of them at once, and for something absent.

    Args:
        where: the questions get the ids "<where>/<n>".
        regions: of one picture, each name once.
        absent: names that are certainly not in the picture; one of them is asked for.
        rng: chooses what is asked and the wording; answers follow from the question and its targets alone.
    Returns:
        The questions, and how many regions were not asked of, by reason.
    """
    left_out: Counter[str] = Counter()
    names = [region.name for region in regions]
    asked = []
    for region in sorted(regions, key=lambda region: region.name):
        if region.mask_HW.sum() < LEAST_PIXELS:
            left_out[f"regions of fewer than {LEAST_PIXELS} pixels"] += 1
        elif any(_confused(region.name, other) for other in names):
            left_out["regions whose name also fits another region"] += 1
        else:
            asked.append(region)
    if len(asked) > MOST_ASKED:
        left_out[f"regions beyond {MOST_ASKED} in a picture"] += len(asked) - MOST_ASKED
        asked = sorted(rng.sample(asked, MOST_ASKED), key=lambda region: region.name)
    drafts = [_draft([region], region.kind, rng) for region in asked]
    if len(asked) > 1:
        drafts.append(_draft(rng.sample(asked, min(len(asked), rng.choice((2, 3)))), "multi", rng))
    missing = sorted(name for name in absent if not any(covers(name, o) or covers(o, name) for o in names))
    if missing:
        drafts.append(_no_target(rng.choice(missing), rng))
    return tuple(Question(f"{where}/{index}", *draft) for index, draft in enumerate(drafts)), left_out


def _confused(name: str, other: str) -> bool:
    """Whether a question for `name` could mean `other`: "the table" a pool table, but "the mug" no handle of it."""
    return name != other and covers(name, other) and not other.endswith(" of the " + name)


def _draft(regions: Sequence[Region], kind: str, rng: random.Random) -> tuple:
    named = _listed([region.name for region in regions])
    said = _listed([f"{region.name} {SEG}" for region in regions])
    be = "are" if len(regions) > 1 or regions[0].name in MANY else "is"
    phrases = tuple(region.name for region in regions)
    masks = tuple(rle.encode(region.mask_HW) for region in regions)
    question = rng.choice(ASKED).format(named) if len(regions) > 1 else _ask(named, rng)
    return kind, question, f"The {said} {be} here.", phrases, masks


def _ask(name: str, rng: random.Random) -> str:
    return rng.choice((*ASKED, ASKED_IF[name in MANY])).format(name)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', the '.join(names[:-1])} and the {names[-1]}"


def _no_target(name: str, rng: random.Random) -> tuple:
    answer = f"There {'are' if name in MANY else 'is'} no {name} in the picture."
    return "no_target", _ask(name, rng), answer, (), ()


def read_regions(
    labels_HW: np.ndarray, classes: ClassList, ignored: Collection[int], where: str
) -> tuple[tuple[Region, ...], np.ndarray]:
    """Cut a label map into its classes; classes that are the same in words are one region.

    Args:
        labels_HW: int (H, W), from `ClassList.labels_HW`.
        ignored: labels of nothing; those of a class too, if given here.
    Returns:
        The regions by name, and the ignored pixels, bool (H, W).
    Raises:
        DataError: a label that is neither in the class list nor ignored.
    """
    present = np.unique(labels_HW).tolist()
    unknown = [label for label in present if label not in ignored and label not in classes.names]
    if unknown:
        shown = f"#{unknown[0]:06x}" if classes.is_coloured else unknown[0]
        count = int((labels_HW == unknown[0]).sum())
        raise DataError(f"{where}: {count} pixels of label {shown}, not in the class list; add it or --ignore it")
    masks: dict[str, np.ndarray] = {}
    for label in (label for label in present if label not in ignored):
        name = words(classes.names[label])
        masks[name] = masks.get(name, False) | (labels_HW == label)
    regions = tuple(Region(name, mask_HW) for name, mask_HW in sorted(masks.items()))
    return regions, np.isin(labels_HW, list(ignored))


def labelled_pictures(pictures: str | Path, labels: str | Path, suffix: str = "") -> tuple[list, Counter[str]]:
    """Pair the label PNGs of one folder with the pictures of another by file name.

    Args:
        suffix: what the stem of a label has beyond the picture's: "_L" where a.jpg belongs to a_L.png.
    Returns:
        The pairs by name, and how many pictures have no labels.
    Raises:
        DataError: a folder that is not there or empty, a label without its picture, or two pictures of one name.
    """
    found: dict[str, str] = {}
    for file in _files(pictures, PICTURES):
        stem = Path(file).stem
        if stem in found:
            raise DataError(f"{pictures}: {found[stem]} and {file} are one picture by name; remove one")
        found[stem] = file
    pairs = []
    for file in _files(labels, (".png",)):
        stem = Path(file).stem
        name = stem.removesuffix(suffix)
        if name not in found or not stem.endswith(suffix):
            raise DataError(f"{labels}/{file}: no picture {name}.* in {pictures}; fetch it or remove the label")
        pairs.append(LabelledPicture(name, Path(pictures) / found.pop(name), Path(labels) / file))
    return pairs, Counter({"pictures without a label PNG": len(found)} if found else {})


def _files(folder: str | Path, endings: Sequence[str]) -> Iterator[str]:
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; check the path or run the download again")
    files = sorted(file.name for file in Path(folder).iterdir() if file.suffix.lower() in endings)
    if not files:
        raise DataError(f"{folder}: no {', '.join(endings)} in it; check the path")
    return iter(files)


def semantic_row(
    pair: LabelledPicture,
    source: str,
    classes: ClassList,
    ignored: Collection[int],
    seed: int,
    max_pixels: int,
    uses: bool = False,
) -> Converted:
    """Make the row of one labelled picture; the picture's bytes are kept as they are.

    Args:
        source: the name of the data set, first in the ids.
        ignored: labels whose pixels are neither right nor wrong.
        seed: with `source` and the name of the picture it fixes the questions.
        uses: also ask what things are for and where they are to each other.
    Raises:
        DataError: a broken file, sizes that differ, or labels not in the class list.
    """
    picture = inside(pair.picture.parent, pair.picture.name)
    image = read_image(picture, max_pixels)
    labels = read_label_png(inside(pair.labels.parent, pair.labels.name), max_pixels)
    labels_HW = classes.labels_HW(labels, str(pair.labels))
    if labels_HW.shape != image.size[::-1]:
        raise DataError(
            f"{pair.labels}: {labels_HW.shape[1]}x{labels_HW.shape[0]}, its picture is {image.size[0]}x"
            f"{image.size[1]}; fetch both again"
        )
    regions, ignore_HW = read_regions(labels_HW, classes, ignored, str(pair.labels))
    left_out: Counter[str] = Counter()
    absent: set[str] = set()
    if ignore_HW.mean() <= MOST_UNKNOWN:
        absent = {words(name) for label, name in classes.names.items() if label not in ignored}
    else:
        left_out[f"questions for something absent where over {MOST_UNKNOWN:.0%} is unlabelled"] += 1
    where = f"{source}/{pair.name}"
    rng = random.Random(f"{seed}/{where}")  # by picture: the order of conversion changes nothing
    questions, unasked = questions_for(where, regions, absent, rng)
    if uses:
        targets = [(region.name, region.mask_HW) for region in regions if region.mask_HW.sum() >= LEAST_PIXELS]
        there = {label for label in np.unique(labels_HW).tolist() if label in classes.names}  # the ignored ones too
        hardly_seen = {words(classes.names[label]) for label in there} - {name for name, _ in targets}
        questions += further_questions(where, len(questions), targets, bool(absent), rng, hardly_seen)
    objects = tuple(region.name for region in regions)
    row: Mapping[str, Any] = Sample(image, where, objects, rle.encode(ignore_HW), questions).to_row()
    return Converted({**row, "image": {"bytes": picture.read_bytes(), "path": None}}, left_out + unasked)
