"""GranD_f (GLaMM): captions whose phrases are grounded in masks, one question a caption and `<seg>` after each phrase.

Four forms are read, each told by its keys: human annotated and Open-PSG records with `groundings`; RefCOCO-g records
with `refs`; Flickr30k in COCO form with `tokens_positive` and `sam_mask`; and the evaluation splits, whose captions
with `labels` and masks are two files. What cannot be grounded stays in the caption as words, and is counted.

A picture may have several captions: Flickr30k's have five, each an image of the file's own, of which two may be word
for word the same; one is then kept and the other counted. In the other forms a caption that a picture has twice is a
record that stands twice, and in an evaluation split a picture has one caption: more is an error.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popen.data import rle
from popen.data.conversion import Converted
from popen.data.polygons import segmentation_mask
from popen.data.safe_io import DataError, inside, read_image, read_json
from popen.data.schema import SEG, Question, Sample, empty_ignore

ASKED = (
    "Describe this picture and segment what you name.",
    "What is in the picture? Mark each thing that you mention.",
    "Please describe the scene, with a mask for every part of it that you speak of.",
    "Give a description of the picture in which every thing has its mask.",
)


@dataclass(frozen=True)
class Grounding:
    """A stretch of a caption, from `start` up to `end`, and a COCO segmentation of what it means."""

    start: int
    end: int
    segmentation: Any


@dataclass(frozen=True)
class Caption:
    """A caption and its groundings."""

    text: str
    groundings: tuple[Grounding, ...]


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture by its file name, and its captions."""

    file: str
    captions: tuple[Caption, ...]


def read_grandf(path: str | Path, masks: str | Path | None = None) -> tuple[list[CaptionedPicture], Counter[str]]:
    """Read and check a file of GranD_f; captions of one picture are joined.

    Args:
        path: one of the forms above.
        masks: the file of masks that belongs to the captions of an evaluation split, and to no other.
    Returns:
        The pictures in the order of the file, and what was left out, by reason.
    Raises:
        DataError: names file and record: another format, an id twice, a picture listed twice, a phrase outside its
            caption.
    """
    data = read_json(path)
    left_out: Counter[str] = Counter()
    pictures: dict[str, list[Caption]] = defaultdict(list)
    try:
        for where, file, caption in _captions(data, path, masks, left_out):
            if not any(caption.text == other.text for other in pictures[file]):
                pictures[file].append(caption)
            elif isinstance(data, Mapping):  # Flickr30k: two people may say the same
                left_out["captions listed twice"] += 1
            else:
                raise DataError(f"{where}: {file} is listed twice with the same caption; remove one of the records")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not GranD_f ({type(error).__name__}: {error}); fetch it again") from None
    return [CaptionedPicture(file, tuple(captions)) for file, captions in pictures.items()], left_out


def _captions(data, path, masks, left_out: Counter[str]) -> Iterator[tuple[str, str, Caption]]:
    """Where it stands, the picture's file, and the caption."""
    if isinstance(data, Mapping) and data["annotations"] and "labels" in data["annotations"][0]:
        if masks is None:
            raise DataError(f"{path}: captions of an evaluation split; give the file of their masks too")
        yield from _evaluation(data, read_json(masks), path, masks, left_out)
        return
    if masks is not None:
        raise DataError(f"{path}: has its masks itself; leave out {masks}")
    if isinstance(data, Mapping):
        yield from _flickr(data, path, left_out)
        return
    for index, record in enumerate(data):
        where = f"{path}: record {index}"
        if "groundings" in record:
            yield where, record["file_name"], _with_spans(record, where, left_out)
        else:
            record = next(iter(record.values()), None)  # under the number of the picture
            found = [(ref["sentence"], ref["segmentation"]) for ref in record["refs"]]
            yield where, record["img_file_name"], _with_phrases(record["caption"], found, where, left_out)


def _with_spans(record: Mapping[str, Any], where: str, left_out: Counter[str]) -> Caption:
    """Human annotated and Open-PSG: phrases as keys, each with its place and RLEs."""
    text = _clean(record["caption"], where)
    groundings = []
    for phrase, grounding in record["groundings"].items():
        if grounding is None or not grounding["rle_masks"]:
            left_out["phrases without a mask"] += 1
            continue
        start, end = _span(grounding["token_positives"], text, f"{where}: {phrase!a}")
        groundings.append(Grounding(start, end, grounding["rle_masks"]))
    return Caption(text, tuple(groundings))


def _with_phrases(caption: Any, found: Sequence[tuple[str, Any]], where: str, left_out: Counter[str]) -> Caption:
    """Phrases without their places: the n-th grounding of a phrase is where the caption says it for the n-th time."""
    text = _clean(caption, where)
    uses: Counter[str] = Counter()
    groundings = []
    for phrase, segmentation in found:
        phrase = phrase.strip().lower()
        places = list(re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)) if phrase else []
        if uses[phrase] < len(places):
            groundings.append(Grounding(*places[uses[phrase]].span(), segmentation))
        else:
            left_out["phrases that are not in their caption"] += 1
        uses[phrase] += 1
    return Caption(text, tuple(groundings))


def _flickr(data: Mapping[str, Any], path, left_out: Counter[str]) -> Iterator[tuple[str, str, Caption]]:
    by_image = _by_image(data["annotations"])
    for image in _once(data["images"], path):
        where = f"{path}: image {image['id']}"
        text = _clean(image["caption"], where)
        groundings = []
        for annotation in by_image.pop(image["id"], ()):
            if annotation.get("ignore") or annotation.get("sam_mask") is None:
                left_out["phrases without a mask"] += 1
                continue
            start, end = _span(annotation["tokens_positive"][0], text, f"{where}: annotation {annotation['id']}")
            groundings.append(Grounding(start, end, annotation["sam_mask"]))
        yield where, image["file_name"], Caption(text, tuple(groundings))
    _none_left(by_image, path)


def _evaluation(captions, masks, path, masks_path, left_out: Counter[str]) -> Iterator[tuple[str, str, Caption]]:
    by_image = _by_image(masks["annotations"])
    files = {image["id"]: image.get("file_name", f"{image['id']}.jpg") for image in _once(captions["images"], path)}
    seen: dict[str, Any] = {}
    for annotation in captions["annotations"]:
        number = annotation["image_id"]
        where = f"{path}: image {number}"
        if number not in files:
            raise DataError(f"{where}: a caption without its image; add or remove it")
        if files[number] in seen:
            first = seen[files[number]]
            raise DataError(f"{where}: {files[number]} is listed twice, also as image {first}; remove one caption")
        seen[files[number]] = number
        found = by_image.pop(number, [])
        if len(found) != len(annotation["labels"]):
            counts = f"{len(annotation['labels'])} labels in its caption, {len(found)} masks in {masks_path}"
            raise DataError(f"{where}: {counts}; fetch both again")
        pairs = [(label, mask["segmentation"]) for label, mask in zip(annotation["labels"], found, strict=True)]
        yield where, files[number], _with_phrases(annotation["caption"], pairs, where, left_out)
    _none_left(by_image, masks_path)


def _by_image(annotations: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    by_image = defaultdict(list)
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    return by_image


def _once(images: Sequence[Mapping[str, Any]], path: str | Path) -> Sequence[Mapping[str, Any]]:
    number, count = Counter(image["id"] for image in images).most_common(1)[0] if images else (None, 0)
    if count > 1:
        raise DataError(f"{path}: image {number} is listed {count} times; remove all but one")
    return images


def _none_left(by_image: Mapping[Any, list], path: str | Path) -> None:
    if by_image:
        raise DataError(f"{path}: annotations of image {next(iter(by_image))!r}, which has no caption; remove them")


def _clean(caption: Any, where: str) -> str:
    if not isinstance(caption, str) or not caption.strip('"').strip() or SEG in caption:
        raise DataError(f"{where}: the caption must be text without {SEG}; correct it")
    return caption.strip('"').strip()  # the places of phrases count from here


def _span(place: Any, text: str, where: str) -> tuple[int, int]:
    if not isinstance(place, list) or len(place) != 2 or not all(type(number) is int for number in place):
        raise DataError(f"{where}: expected [start, end] of the phrase, got {ascii(place)[:60]}; correct it")
    start, end = place
    phrase = text[max(start, 0) : end]
    if not 0 <= start < end <= len(text) or not phrase.strip():
        raise DataError(f"{where}: [{start}, {end}] is no phrase of a caption of {len(text)} letters; correct it")
    return start + len(phrase) - len(phrase.lstrip()), start + len(phrase.rstrip())


def grounded_answer(caption: Caption, masks: Sequence[np.ndarray]) -> tuple[str, tuple[str, ...], list[np.ndarray]]:
    """Write `<seg>` behind each grounded phrase of a caption.

    Args:
        masks: bool (H, W), one for each grounding; masks of the same stretch are united.
    Returns:
        The answer, its phrases in the order of their `<seg>`, and their masks. Of two phrases that end together the
        shorter one comes first.
    """
    united: dict[tuple[int, int], np.ndarray] = {}
    for grounding, mask_HW in zip(caption.groundings, masks, strict=True):
        place = (grounding.end, -grounding.start)
        united[place] = united.get(place, False) | mask_HW
    answer = caption.text
    for end, _ in sorted(united, reverse=True):
        answer = f"{answer[:end]} {SEG}{answer[end:]}"
    places = sorted(united)
    phrases = tuple(caption.text[-start:end] for end, start in places)
    return answer, phrases, [united[place] for place in places]


def grandf_row(picture: CaptionedPicture, root: str | Path, source: str, max_pixels: int) -> Converted:
    """Make the row of one picture under `root`; the picture's bytes are kept as they are.

    Args:
        source: first in the ids, "grandf/train".
    Raises:
        DataError: a broken or missing picture, or a segmentation that is malformed or of another size.
    """
    file = inside(root, picture.file)
    image = read_image(file, max_pixels)
    width, height = image.size
    where = f"{source}/{Path(picture.file).with_suffix('')}"
    left_out: Counter[str] = Counter()
    questions = []
    for number, caption in enumerate(picture.captions):
        kept, masks = [], []
        for grounding in caption.groundings:
            phrase = ascii(caption.text[grounding.start : grounding.end])
            mask_HW = segmentation_mask(grounding.segmentation, height, width, f"{picture.file}: {phrase}")
            if mask_HW.any():
                kept.append(grounding)
                masks.append(mask_HW)
            else:
                left_out["phrases without a mask"] += 1
        if not kept:
            left_out["captions without a grounded phrase"] += 1
            continue
        answer, phrases, united = grounded_answer(Caption(caption.text, tuple(kept)), masks)
        asked = ASKED[(len(questions) + sum(picture.file.encode())) % len(ASKED)]  # by picture, not by chance
        encoded = tuple(map(rle.encode, united))
        questions.append(Question(f"{where}/{number}", "caption", asked, answer, phrases, encoded))
    named = {phrase.lower() for question in questions for phrase in question.phrases}
    objects = tuple(sorted({re.sub(r"^(an?|the|some)\s+(?=\w)", "", phrase) for phrase in named}))
    row = Sample(image, where, objects, empty_ignore(height, width), tuple(questions)).to_row()
    return Converted({**row, "image": {"bytes": file.read_bytes(), "path": None}}, left_out)
