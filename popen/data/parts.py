"""Objects and their parts, PACO-LVIS and Pascal-Part, turned into questions: "the handle of the mug" is one target.

Both are COCO-style JSON whose categories of parts are named "mug:handle" or "mug_(cup):handle". PACO says of a picture
which categories are certainly absent and which are not labelled whole; Pascal-Part labels every object of its classes.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popen.data.class_list import words
from popen.data.coco_records import check_once
from popen.data.conversion import Converted
from popen.data.polygons import segmentation_mask
from popen.data.safe_io import DataError, inside, read_image, read_json
from popen.data.schema import Sample, empty_ignore
from popen.data.semantic import Region, questions_for


@dataclass(frozen=True)
class PartCategory:
    """An object ("mug", part None) or a part of one ("mug", "handle")."""

    thing: str
    part: str | None = None

    @property
    def phrase(self) -> str:
        return self.thing if self.part is None else f"{self.part} of the {self.thing}"


@dataclass(frozen=True)
class PartSet:
    """A read annotation file; `source` stands first in the ids of its pictures and questions."""

    source: str
    categories: Mapping[int, PartCategory]
    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Sequence[Mapping[str, Any]]]


def part_category(name: str) -> PartCategory:
    """Turn a category's name into words: "mug:handle", "car_(automobile):wheel", "mug"; ValueError on three parts."""
    thing, *part = (words(piece) for piece in name.split(":"))
    if not thing or len(part) > 1 or part == [""]:
        raise ValueError(f"category {name!r}: expected 'object' or 'object:part'")
    return PartCategory(thing, part[0] if part else None)


def read_parts(path: str | Path, source: str) -> PartSet:
    """Read and check a COCO-style file of objects and parts.

    Raises:
        DataError: names the file and the image, annotation or category that is wrong or stands twice.
    """
    data = read_json(path)
    try:
        categories = {entry["id"]: part_category(entry["name"]) for entry in data["categories"]}
        images = {image["id"]: image for image in data["images"]}
        for listed, key in (("categories", "id"), ("images", "id"), ("images", "file_name")):
            check_once(path, listed, data[listed], key)
        annotations = defaultdict(list)
        for annotation in data["annotations"]:
            where = f"{path}: annotation {annotation['id']}"
            if annotation["image_id"] not in images:
                raise DataError(f"{where}: no image {annotation['image_id']!r} in the file; add or remove it")
            if annotation["category_id"] not in categories:
                raise DataError(f"{where}: no category {annotation['category_id']!r} in the file; add or correct it")
            annotations[annotation["image_id"]].append(annotation)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO-style JSON ({type(error).__name__}: {error}); fetch it again") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; correct it") from None
    return PartSet(source, categories, images, dict(annotations))


def part_row(data: PartSet, image_id: int, root: str | Path, seed: int, max_pixels: int) -> Converted:
    """Make the row of one image whose file lies under `root`; the picture's bytes are kept as they are.

    Annotations of one category are one target. Categories that PACO marks as not labelled whole are not asked of.

    Raises:
        DataError: a broken or missing picture, one of another size, a segmentation that is malformed or empty.
    """
    record = data.images[image_id]
    picture = inside(root, record["file_name"])
    image = read_image(picture, max_pixels)
    width, height = image.size
    if (record.get("width"), record.get("height")) != (width, height):
        size = f"{record.get('width')}x{record.get('height')}"
        raise DataError(f"image {image_id}: {picture.name} is {width}x{height}, not {size}; fetch it again")
    masks: dict[PartCategory, np.ndarray] = {}
    left_out: Counter[str] = Counter()
    partly = {data.categories[number] for number in _numbers(record, "not_exhaustive_category_ids", data)}
    for annotation in data.annotations.get(image_id, ()):
        category = data.categories[annotation["category_id"]]
        where = f"image {image_id}: annotation {annotation['id']}"
        if annotation.get("segmentation") in (None, [], {}):
            raise DataError(f"{where}: no segmentation; fetch the file again or remove the annotation")
        mask_HW = segmentation_mask(annotation["segmentation"], height, width, where)
        masks[category] = masks.get(category, False) | mask_HW
    incomplete = {category for category in masks if any(category.thing == other.thing for other in partly)}
    if incomplete:
        left_out["regions of categories that are not labelled whole"] += len(incomplete)
    regions = [
        Region(category.phrase, mask_HW, "semantic" if category.part is None else "part")
        for category, mask_HW in masks.items()
        if category not in incomplete
    ]
    present = {category.thing for category in masks} | {category.thing for category in partly}
    where = f"{data.source}/{image_id}"
    rng = random.Random(f"{seed}/{where}")
    questions, unasked = questions_for(where, regions, _absent(record, data) - present, rng)
    objects = tuple(sorted(present | {category.phrase for category in masks}))
    row = Sample(image, where, objects, empty_ignore(height, width), questions).to_row()
    return Converted({**row, "image": {"bytes": picture.read_bytes(), "path": None}}, left_out + unasked)


def _absent(record: Mapping[str, Any], data: PartSet) -> set[str]:
    """Things that are certainly not there: what the file says, or, where it says nothing, all without a label."""
    if "neg_category_ids" in record:
        return {data.categories[number].thing for number in _numbers(record, "neg_category_ids", data)}
    return {category.thing for category in data.categories.values()}


def _numbers(record: Mapping[str, Any], key: str, data: PartSet) -> list[int]:
    numbers = record.get(key, [])
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise DataError(f"image {record['id']}: {key!r} must be a list of whole numbers; correct it")
    return [number for number in numbers if number in data.categories]  # others tell nothing of what is asked
