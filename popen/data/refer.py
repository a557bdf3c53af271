"""The REFER family (RefCOCO, RefCOCO+, RefCOCOg, RefCLEF) and gRefCOCO: expressions for objects of COCO annotations.

`refs(<splitBy>).p`, or gRefCOCO's `grefs(<splitBy>).json`, names for each reference its annotations in
`instances.json` and the sentences said of them. Every sentence is one question with one mask, lower-cased, as LISA
and PixelLM evaluate it; a sentence of gRefCOCO for several objects asks for their union, and one for none (annotation
-1) is answered by a denial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popen.data import rle
from popen.data.coco_records import check_once
from popen.data.polygons import segmentation_mask
from popen.data.restricted_pickle import read_plain_pickle
from popen.data.safe_io import MAX_PIXELS, DataError, inside, read_image, read_json
from popen.data.schema import Question, Sample, empty_ignore
from popen.data.target_question import ANSWER, DENIAL, PHRASE, ask_phrase

SPLIT_BY = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "refclef": ("unc", "berkeley"),
    "grefcoco": ("unc",),
}
IMAGES = {name: Path("images/mscoco/images/train2014") for name in SPLIT_BY}
IMAGES["refclef"] = Path("images/saiapr_tc-12")
NO_TARGET = -1


def source_of(dataset: str, split_by: str) -> str:
    """What question ids begin with: the data set, and how it is split where that is not the way papers report on.

    The same sentences stand in every way of splitting, in other splits, so a way must be told from another.
    """
    return dataset if split_by == SPLIT_BY[dataset][0] else f"{dataset}-{split_by}"


@dataclass(frozen=True)
class Reference:
    """What was said of one object: id, split, image, annotations (none for no target) and sentences (id, words)."""

    id: int
    split: str
    image_id: int
    annotation_ids: tuple[int, ...]
    sentences: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Instances:
    """A read `instances.json`: image records, annotations and the names of the things in an image, all by id."""

    images: dict[int, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    objects: dict[int, tuple[str, ...]]


def read_references(folder: str | Path, dataset: str, split_by: str) -> tuple[Reference, ...]:
    """Read the references of `folder` (refs by a pickle that runs nothing, gRefCOCO's by json) and check them.

    Raises:
        DataError: unknown dataset or splitBy, a broken file, or a reference with something missing, blank or of the
            wrong kind.
    """
    if split_by not in SPLIT_BY.get(dataset, ()):
        known = "; ".join(f"{name}: {', '.join(ways)}" for name, ways in SPLIT_BY.items())
        raise DataError(f"dataset {dataset!r} split by {split_by!r} does not exist; there are {known}")
    if dataset == "grefcoco":
        path = Path(folder) / f"grefs({split_by}).json"
        data = read_json(path)
    else:
        path = Path(folder) / f"refs({split_by}).p"
        data = read_plain_pickle(path)
    if not isinstance(data, list) or not data:
        raise DataError(f"{path}: expected a list of references; fetch it again")
    may_deny = dataset == "grefcoco"
    references = tuple(_reference(entry, f"{path}: entry {index}", may_deny) for index, entry in enumerate(data))
    check_once(path, "references", data, "ref_id")
    return references


def read_instances(path: str | Path) -> Instances:
    """Read and check an `instances.json`; DataError names the file and the record."""
    data = read_json(path)
    try:
        names = {category["id"]: category["name"] for category in data["categories"]}
        images = {image["id"]: image for image in data["images"]}
        annotations = {annotation["id"]: annotation for annotation in data["annotations"]}
        for listed, key in (("categories", "id"), ("images", "id"), ("images", "file_name"), ("annotations", "id")):
            check_once(path, listed, data[listed], key)
        for number, image in images.items():
            if not all(type(image[key]) is int for key in ("id", "height", "width")):
                raise DataError(f"{path}: image {number}: id, height and width must be whole numbers; correct it")
        for number, name in names.items():
            if not isinstance(name, str) or not name.strip():
                raise DataError(f"{path}: category {number}: its name must be text, not blank; correct it")
        things: dict[int, set[str]] = {number: set() for number in images}
        for number, annotation in annotations.items():
            if annotation["image_id"] not in images or annotation["category_id"] not in names:
                raise DataError(f"{path}: annotation {number}: its image or category is not in the file; add it")
            things[annotation["image_id"]].add(names[annotation["category_id"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO instances ({type(error).__name__}: {error}); fetch it again") from None
    return Instances(images, annotations, {number: tuple(sorted(found)) for number, found in things.items()})


def split_names(references: Sequence[Reference]) -> tuple[str, ...]:
    """List the splits one can ask for: train, val, test, and testA, testB, ... by the letters there."""
    there = {reference.split for reference in references}
    letters = sorted({letter for letter in "ABC" if any("test" in split and letter in split for split in there)})
    whole = sorted((s for s in there if s == "test" or "test" not in s), key=lambda split: (split == "test", split))
    return (*whole, *(f"test{letter}" for letter in letters))


def in_split(references: Sequence[Reference], split: str) -> tuple[Reference, ...]:
    """Select references as REFER's `getRefIds` does: testA also takes testAB, and test every split with test in it.

    Raises:
        DataError: no reference is in it; names the splits there.
    """
    if split in ("testA", "testB", "testC"):
        chosen = tuple(reference for reference in references if split[-1] in reference.split)
    elif split == "test":
        chosen = tuple(reference for reference in references if "test" in reference.split)
    else:
        chosen = tuple(reference for reference in references if reference.split == split)
    if not chosen:
        raise DataError(f"no references in split {split!r}; there: {', '.join(split_names(references))}")
    return chosen


def by_image(references: Sequence[Reference]) -> dict[int, list[Reference]]:
    """Group references by image id; images by number, references by id."""
    groups: dict[int, list[Reference]] = {}
    for reference in sorted(references, key=lambda reference: (reference.image_id, reference.id)):
        groups.setdefault(reference.image_id, []).append(reference)
    return groups


def refer_row(
    instances: Instances,
    references: Sequence[Reference],
    source: str,
    images: str | Path,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Make the row of one image and its references; the picture's bytes are kept as they are.

    Args:
        references: of one image, at least one. source: of `source_of`.
        images: the folder of the pictures.
    Returns:
        A row of FEATURES; question ids "<source>/<ref_id>/<sent_id>", kinds "referring", "multi" (several objects,
        one mask) and "no_target"; objects are the categories annotated in the image.
    Raises:
        DataError: the image or an annotation is missing, belongs elsewhere, is broken, or has no pixels.
    """
    image_id = references[0].image_id
    record = instances.images.get(image_id)
    if record is None:
        raise DataError(f"ref {references[0].id}: image {image_id} is not in instances.json; fetch both again")
    picture = inside(images, record["file_name"])
    image = read_image(picture, max_pixels)
    if image.size != (record["width"], record["height"]):
        size = f"{record['width']}x{record['height']}"
        raise DataError(f"{picture}: {image.width}x{image.height}, instances.json says {size}; fetch it again")
    questions = []
    for reference in references:
        kind, answer, phrases, masks = "no_target", DENIAL, (), ()
        if reference.annotation_ids:
            kind = "multi" if len(reference.annotation_ids) > 1 else "referring"
            answer, phrases, masks = ANSWER, (PHRASE,), (rle.encode(_target(instances, reference)),)
        questions += [
            Question(f"{source}/{reference.id}/{number}", kind, ask_phrase(words), answer, phrases, masks)
            for number, words in reference.sentences
        ]
    ignore = empty_ignore(record["height"], record["width"])
    row = Sample(image, str(image_id), instances.objects[image_id], ignore, tuple(questions)).to_row()
    return {**row, "image": {"bytes": picture.read_bytes(), "path": None}}


def _target(instances: Instances, reference: Reference) -> np.ndarray:
    """The union of the reference's annotations, bool (H, W)."""
    record = instances.images[reference.image_id]
    mask_HW = np.zeros((record["height"], record["width"]), dtype=np.bool_)
    for number in reference.annotation_ids:
        where = f"ref {reference.id}: annotation {number}"
        annotation = instances.annotations.get(number)
        if annotation is None or annotation["image_id"] != reference.image_id:
            state = "is not in instances.json" if annotation is None else f"is of image {annotation['image_id']}"
            raise DataError(f"{where}: {state}; fetch both files again")
        part_HW = segmentation_mask(annotation.get("segmentation"), *mask_HW.shape, where)
        if not part_HW.any():
            raise DataError(f"{where}: no pixel in its segmentation; correct or remove the reference")
        mask_HW |= part_HW
    return mask_HW


def _reference(entry: Any, where: str, may_deny: bool) -> Reference:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: expected a reference, not {type(entry).__name__}; fetch it again")
    where = f"{where} (ref {ascii(entry.get('ref_id'))[:20]})"
    number, split, image_id, targets, sentences = (
        entry.get(key) for key in ("ref_id", "split", "image_id", "ann_id", "sentences")
    )
    targets = targets if isinstance(targets, list) else [targets]
    if not all(type(value) is int for value in (number, image_id, *targets)) or not targets:
        raise DataError(f"{where}: ref_id, image_id and ann_id must be whole numbers; fetch it again")
    if not isinstance(split, str) or not split:
        raise DataError(f"{where}: split must be text; fetch it again")
    if NO_TARGET in targets and (len(targets) > 1 or not may_deny):
        raise DataError(f"{where}: ann_id {NO_TARGET}, no target, stands alone and in gRefCOCO only; correct it")
    if not isinstance(sentences, list) or not sentences:
        raise DataError(f"{where}: no sentences; remove the reference")
    found = []
    for index, sentence in enumerate(sentences):
        key, words = (sentence.get(k) for k in ("sent_id", "sent")) if isinstance(sentence, Mapping) else (None, None)
        if type(key) is not int or not isinstance(words, str) or not words.strip():
            raise DataError(f"{where}: sentence {index}: sent_id must be a whole number and sent text; correct it")
        found.append((key, words.strip().lower()))
    return Reference(number, split, image_id, tuple(t for t in targets if t != NO_TARGET), tuple(found))
