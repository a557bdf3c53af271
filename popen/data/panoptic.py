"""COCO panoptic annotations turned into questions about an image.

Things without a segment are truly absent (COCO labels all of them), so no-target questions are asked of things only.
Crowds and void pixels are ignored, and nothing is asked of a name that also stands in a crowd.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popen.data import rle
from popen.data.coco_records import check_once
from popen.data.further_questions import further_questions
from popen.data.safe_io import DataError, inside, read_image, read_json, read_label_png
from popen.data.schema import SEG, Question, Sample

MOST_TARGETS = 4
CLEAR_LEAD = 0.05  # of the picture's side: how far the extreme one must stand out for "leftmost" to be a fact

IRREGULAR = {
    "floor-wood": "wooden floor",
    "playingfield": "playing field",
    "tv": "TV",
    "wall-brick": "brick wall",
    "wall-stone": "stone wall",
    "wall-tile": "tiled wall",
    "wall-wood": "wooden wall",
    "window-blind": "window blind",
}
PLURAL = {"scissors", "skis", "stairs"}
MASS = {"broccoli"}


@dataclass(frozen=True)
class Category:
    """A category by its cleaned name; a thing can be counted, stuff (grass, sky) cannot."""

    name: str
    is_thing: bool


@dataclass(frozen=True)
class Segment:
    """One labelled region of an image; a crowd is several things in one region."""

    category: Category
    mask_HW: np.ndarray
    is_crowd: bool = False


@dataclass(frozen=True)
class PanopticSet:
    """A read `panoptic.json`: categories by id, image records by id, and each image's annotation by image id."""

    categories: dict[int, Category]
    images: dict[int, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]


def clean_name(name: str) -> str:
    """Turn a COCO category name into words: "grass-merged" is "grass", "wall-brick" is "brick wall"."""
    if name in IRREGULAR:
        return IRREGULAR[name]
    for suffix in ("-merged", "-other", "-stuff"):  # in this order: "wall-other-merged" has two
        name = name.removesuffix(suffix)
    return name.replace("-", " ").replace("_", " ")


def questions_for(
    image: Mapping[str, Any], segments: Sequence[Segment], categories: Sequence[Category], rng: random.Random
) -> tuple[Question, ...]:
    """Ask about the segments of one image: referring, multi, position, stuff and no-target questions.

    Args:
        image: its COCO record; "id", "height" and "width" are used.
        segments: all of the image, crowds included; masks bool (height, width).
        categories: all of the data set, from which an absent one is asked for.
        rng: chooses wordings, sides and the absent thing; answers follow from the question and its targets alone.
    Returns:
        Questions with ids "panoptic/<image id>/<n>".
    """
    crowds = {segment.category.name for segment in segments if segment.is_crowd}
    present = sorted({segment.category.name for segment in segments})
    asked: list[tuple[str, str, str, list[str], list[np.ndarray]]] = []  # kind, question, answer, phrases, masks
    for name in present:
        group = [segment for segment in segments if segment.category.name == name]
        if name in crowds or any(other != name and covers(name, other) for other in present):
            continue  # "the wall" is no clear request beside a brick wall, nor "the person" beside a crowd
        masks = [segment.mask_HW for segment in group]
        if not any(segment.category.is_thing for segment in group):
            asked.append(_stuff(name, [np.logical_or.reduce(masks)]))
            continue
        if len(masks) == 1:
            asked.append(_referring(name, masks, rng))
        elif name not in PLURAL | MASS:
            if len(masks) <= MOST_TARGETS:
                asked.append(_multi(name, masks, rng))
            asked.extend(_position(name, masks, rng))
    absent = sorted(
        {
            category.name
            for category in categories
            if category.is_thing and not any(covers(category.name, o) or covers(o, category.name) for o in present)
        }
    )
    if absent:
        asked.append(_no_target(rng.choice(absent)))
    return tuple(
        Question(
            f"panoptic/{image['id']}/{index}", kind, question, answer, tuple(phrases), tuple(map(rle.encode, masks))
        )
        for index, (kind, question, answer, phrases, masks) in enumerate(asked)
    )


def covers(general: str, name: str) -> bool:
    """Whether a `name` may be called a `general`: a brick wall is a wall, and a teddy bear too near to a bear."""
    return name == general or name.endswith(" " + general)


def _stuff(name: str, masks: list[np.ndarray]) -> tuple:
    be = "are" if name in PLURAL else "is"
    return "stuff", f"Where {be} the {name}?", f"The {name} {SEG} {be} here.", [name], masks


def _referring(name: str, masks: list[np.ndarray], rng: random.Random) -> tuple:
    question = rng.choice(("Segment the {}.", "Please mark the {}.", "Can you segment the {}?")).format(name)
    return "referring", question, f"The {name} {SEG} {'are' if name in PLURAL else 'is'} here.", [name], masks


def _multi(name: str, masks: list[np.ndarray], rng: random.Random) -> tuple:
    masks = sorted(masks, key=lambda mask: _centre(mask)[1])
    question = rng.choice(("Segment every {}.", "Please mark every {}.", "Can you segment each {}?")).format(name)
    listed = [f"{name} {SEG}"] * len(masks)
    answer = f"From left to right: {', '.join(listed[:-1])} and {listed[-1]}."
    return "multi", question, answer, [name] * len(masks), masks


def _position(name: str, masks: list[np.ndarray], rng: random.Random) -> Iterator[tuple]:
    """One question for each axis along which an extreme stands out on some side."""
    for axis, sides in ((1, ("leftmost", "rightmost")), (0, ("topmost", "bottommost"))):
        centres = np.array([_centre(mask)[axis] for mask in masks])
        order = np.argsort(centres, kind="stable")
        gap = CLEAR_LEAD * masks[0].shape[axis]
        clear = []
        if centres[order[1]] - centres[order[0]] >= gap:
            clear.append((sides[0], order[0]))
        if centres[order[-1]] - centres[order[-2]] >= gap:
            clear.append((sides[1], order[-1]))
        if clear:
            side, which = rng.choice(clear)
            phrase = f"{side} {name}"
            yield "position", f"Which {name} is {side}?", f"The {phrase} {SEG} is here.", [phrase], [masks[which]]


def _no_target(name: str) -> tuple:
    if name in PLURAL:
        words = f"Are there {name}? Segment them.", f"There are no {name} in the picture."
    else:
        article = "any" if name in MASS else "an" if name[0] in "aeiou" else "a"
        words = f"Is there {article} {name}? Segment it.", f"There is no {name} in the picture."
    return "no_target", *words, [], []


def _centre(mask_HW: np.ndarray) -> tuple[float, float]:
    rows, columns = mask_HW.sum(1), mask_HW.sum(0)
    total = max(int(rows.sum()), 1)
    return float(rows @ np.arange(len(rows)) / total), float(columns @ np.arange(len(columns)) / total)


def read_panoptic(path: str | Path) -> PanopticSet:
    """Read and check a COCO `panoptic.json`; DataError names the file, image or category."""
    data = read_json(path)
    try:
        categories = {c["id"]: Category(clean_name(c["name"]), bool(c["isthing"])) for c in data["categories"]}
        images = {image["id"]: image for image in data["images"]}
        annotations = {annotation["image_id"]: annotation for annotation in data["annotations"]}
        for listed, key in (
            ("categories", "id"),
            ("images", "id"),
            ("images", "file_name"),
            ("annotations", "image_id"),
        ):
            check_once(path, listed, data[listed], key)
        for image in images.values():
            if not all(isinstance(image[key], int) for key in ("id", "height", "width")):
                raise DataError(f"{path}: image {image['id']!r}: id, height and width must be whole numbers")
            if image["id"] not in annotations:
                raise DataError(f"{path}: image {image['id']}: no annotation; remove the image or add it")
        if len(annotations) != len(images):
            raise DataError(f"{path}: {len(annotations)} annotations for {len(images)} images; add the missing images")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO panoptic ({type(error).__name__}: {error}); see cocodataset.org") from None
    return PanopticSet(categories, images, annotations)


def read_segments(
    image: Mapping[str, Any],
    annotation: Mapping[str, Any],
    categories: Mapping[int, Category],
    labels_HW3: np.ndarray,
) -> tuple[tuple[Segment, ...], np.ndarray]:
    """Cut the label map of one image into its segments, checking each against the json.

    Args:
        image, annotation: the records of `panoptic.json`.
        labels_HW3: uint8 (H, W, 3) of the PNG, id = R + 256 G + 65536 B.
    Returns:
        The segments in the order of the json, and the ignored pixels, bool (H, W): void and crowds.
    Raises:
        DataError: names image and segment where size, ids, areas or categories disagree.
    """
    where = f"image {image['id']}"
    if labels_HW3.shape != (image["height"], image["width"], 3):
        raise DataError(
            f"{where}: label PNG of shape {labels_HW3.shape}, the json says {image['height']}x{image['width']}"
        )
    ids_HW = labels_HW3.astype(np.int32) @ np.array([1, 256, 65536], dtype=np.int32)
    areas = dict(zip(*(values.tolist() for values in np.unique(ids_HW, return_counts=True)), strict=True))
    ignore_HW = ids_HW == 0
    segments = []
    if not isinstance(annotation.get("segments_info"), list):
        raise DataError(f"{where}: no list of segments in its annotation; fetch the json again")
    for info in annotation["segments_info"]:
        try:
            number, category, size, crowd = info["id"], info["category_id"], info["area"], info["iscrowd"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: a segment without {error}; fetch the json again") from None
        if not all(isinstance(value, int) for value in (number, category, size)):
            raise DataError(
                f"{where}: segment {number}: id, category_id and area must be whole numbers; correct the json"
            )
        if category not in categories:
            raise DataError(f"{where}: segment {number}: category {category!r} is not in the json; add or correct it")
        found = areas.pop(number, 0) if number != 0 else 0  # popped: a second segment of this id finds none
        if found != size:
            raise DataError(
                f"{where}: segment {number}: area {size} in the json, {found} in the PNG; fetch both again"
            )
        mask_HW = ids_HW == number
        segments.append(Segment(categories[category], mask_HW, bool(crowd)))
        if crowd:
            ignore_HW |= mask_HW
    areas.pop(0, None)
    if areas:
        raise DataError(f"{where}: segment {min(areas)} of the PNG is not in the json; fetch both again")
    return tuple(segments), ignore_HW


def panoptic_row(
    data: PanopticSet, image_id: int, root: str | Path, seed: int, max_pixels: int, uses: bool = False
) -> dict[str, Any]:
    """Make the row of one image under `root` (images/, panoptic/); the picture's bytes are kept as they are.

    With `uses` it is also asked what things are for and where they are to each other.

    Raises:
        DataError: a broken file, or json, picture and PNG disagree.
    """
    record, annotation = data.images[image_id], data.annotations[image_id]
    picture = inside(Path(root) / "images", record.get("file_name", ""))
    image = read_image(picture, max_pixels)
    labels = read_label_png(inside(Path(root) / "panoptic", annotation.get("file_name", "")), max_pixels)
    segments, ignore_HW = read_segments(record, annotation, data.categories, labels)
    if image.size != (record["width"], record["height"]):
        raise DataError(
            f"image {image_id}: {picture.name} is {image.size}, not of the size in the json; fetch it again"
        )
    rng = random.Random(f"{seed}/{image_id}")  # by image: the order of conversion changes nothing
    questions = questions_for(record, segments, tuple(data.categories.values()), rng)
    if uses:
        crowds = {segment.category.name for segment in segments if segment.is_crowd}
        targets = [(s.category.name, s.mask_HW) for s in segments if s.category.name not in crowds]
        questions += further_questions(f"panoptic/{image_id}", len(questions), targets, not crowds, rng)
    objects = tuple(sorted({segment.category.name for segment in segments}))
    row = Sample(image, str(image_id), objects, rle.encode(ignore_HW), questions).to_row()
    return {**row, "image": {"bytes": picture.read_bytes(), "path": None}}


def in_dev(image_id: int, fraction: float) -> bool:
    """Whether an image belongs to dev: by the hash of its id, so that adding images moves none."""
    return int(hashlib.sha256(str(image_id).encode()).hexdigest()[:8], 16) < fraction * 16**8
