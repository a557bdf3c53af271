"""MUSE (PixelLM, section 4): reasoning questions whose answers name several targets, each with a mask.

A record has a picture (`file_name` in COCO's train2014, or `coco_url`), `questions`, for each the annotations that
answer it, and in `text_answers`, where there are any, a sentence with `{seg}` after every target. Without such a
sentence the answer lists the targets by their `rephrased_name`.

A picture may have several records: they become one row, which keeps its picture once, and since the released script
scores by record, each question's id holds the number of its record, "muse/val/000000000009/17/0". What a record asks
twice is kept. A record that stands twice in the file, the same in every word, is an error.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popen.data import rle
from popen.data.class_list import words
from popen.data.conversion import Converted
from popen.data.polygons import segmentation_mask
from popen.data.safe_io import DataError, inside, read_image, read_json
from popen.data.schema import SEG, Question, Sample, empty_ignore

PLACEHOLDER = "{seg}"


@dataclass(frozen=True)
class MuseQuestion:
    """A question, the annotations that answer it, and the sentence for them, None where they are only listed.

    `record` and `number` are its place: in the file, and in the record.
    """

    record: int
    number: int
    question: str
    targets: tuple[Mapping[str, Any], ...]
    sentence: str | None


@dataclass(frozen=True)
class MusePicture:
    """A picture by its file below COCO's folder ("train2017/000000000009.jpg"), and all that is asked of it."""

    file: str
    height: int
    width: int
    objects: tuple[str, ...]
    asked: tuple[MuseQuestion, ...]


def read_muse(path: str | Path) -> tuple[list[MusePicture], Counter[str]]:
    """Read and check a file of MUSE; records of one picture are joined, none of their questions is dropped.

    Returns:
        The pictures in the order of the file, and what was left out, by reason.
    Raises:
        DataError: names file, record and question: not MUSE, lists that do not match, a question without a target, a
            record that stands twice.
    """
    data = read_json(path)
    if not isinstance(data, list):
        raise DataError(f"{path}: not MUSE: expected a list of records; fetch it again")
    left_out: Counter[str] = Counter()
    pictures: dict[str, MusePicture] = {}
    first: dict[bytes, int] = {}  # records by their content
    for index, record in enumerate(data):
        where = f"{path}: record {index}"
        try:
            made = _picture(record, index, where)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: not MUSE ({type(error).__name__}: {error}); fetch it again") from None
        if not made.asked:
            left_out["records without questions"] += 1
            continue
        earlier = first.setdefault(hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest(), index)
        if earlier != index:
            raise DataError(f"{where}: {made.file} is listed twice: the same as record {earlier}; remove one")
        known = pictures.get(made.file)
        if known is None:
            pictures[made.file] = made
            continue
        if (known.height, known.width) != (made.height, made.width):
            raise DataError(f"{where}: {made.file} has another size in an earlier record; correct one")
        objects = tuple(sorted({*known.objects, *made.objects}))
        pictures[made.file] = MusePicture(made.file, made.height, made.width, objects, (*known.asked, *made.asked))
    return list(pictures.values()), +left_out


def _picture(record: Mapping[str, Any], index: int, where: str) -> MusePicture:
    height, width = record["height"], record["width"]
    if type(height) is not int or type(width) is not int:
        raise DataError(f"{where}: height and width must be whole numbers; correct them")
    if "file_name" in record:
        file = f"train2014/{record['file_name']}"
    else:
        file = "/".join(record["coco_url"].split("/")[-2:])
    questions, answers = record.get("questions") or [], record.get("answers") or []
    sentences = record.get("text_answers") or [None] * len(questions)
    if not len(questions) == len(answers) == len(sentences):
        counts = f"{len(questions)} questions, {len(answers)} answers, {len(sentences)} text_answers"
        raise DataError(f"{where}: {counts}; make them as many")
    asked = []
    for number, (question, targets, sentence) in enumerate(zip(questions, answers, sentences, strict=True)):
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: question {number} is blank; remove it")
        if not isinstance(targets, list) or not targets or not all(isinstance(t, Mapping) for t in targets):
            raise DataError(f"{where}: question {number}: no annotation answers it; add one or remove the question")
        if sentence is not None and (not isinstance(sentence, str) or SEG in sentence):
            raise DataError(f"{where}: question {number}: text_answer must be text without {SEG}; correct it")
        asked.append(MuseQuestion(index, number, question.strip(), tuple(targets), sentence or None))
    annotations = [*record.get("ann_list", ()), *(target for question in asked for target in question.targets)]
    objects = tuple(sorted({words(annotation["category_name"]) for annotation in annotations}))
    return MusePicture(file, height, width, objects, tuple(asked))


def muse_row(picture: MusePicture, root: str | Path, split: str, max_pixels: int) -> Converted:
    """Make the row of one picture, whose file lies under `root`; the picture's bytes are kept as they are.

    A target of no pixel has an empty mask, as the released script scores it; `train` is without its question,
    from which a model would learn that an empty mask is an answer.

    Raises:
        DataError: a broken or missing picture, one of another size, a target without name or with a bad segmentation.
    """
    file = inside(root, picture.file)
    image = read_image(file, max_pixels)
    if image.size != (picture.width, picture.height):
        shown = f"{image.size[0]}x{image.size[1]}, MUSE says {picture.width}x{picture.height}"
        raise DataError(f"{picture.file}: {shown}; fetch the picture again")
    left_out: Counter[str] = Counter()
    where = f"muse/{split}/{Path(picture.file).stem}"
    questions = []
    for asked in picture.asked:
        place = f"{picture.file}: record {asked.record}, question {asked.number}"
        masks = [
            segmentation_mask(target.get("segmentation"), picture.height, picture.width, place)
            for target in asked.targets
        ]
        if split == "train" and not all(mask_HW.any() for mask_HW in masks):
            left_out["questions with a target of no pixel"] += 1
            continue
        names = [_name(target, place) for target in asked.targets]
        answer = listed(names)
        if asked.sentence is not None and asked.sentence.count(PLACEHOLDER) == len(names):
            answer = asked.sentence.replace(PLACEHOLDER, SEG).strip()
        elif asked.sentence is not None:
            left_out[f"sentences whose {PLACEHOLDER} are not as many as the targets, which are listed instead"] += 1
        encoded = tuple(map(rle.encode, masks))
        name = f"{where}/{asked.record}/{asked.number}"
        questions.append(Question(name, "reasoning", asked.question, answer, tuple(names), encoded))
    row = Sample(image, where, picture.objects, empty_ignore(image.size[1], image.size[0]), tuple(questions)).to_row()
    return Converted({**row, "image": {"bytes": file.read_bytes(), "path": None}}, left_out)


def listed(names: Sequence[str]) -> str:
    """The answer that lists targets: "A red mug <seg>, a plate <seg> and a fork <seg>."."""
    marked = [f"{name} {SEG}" for name in names]
    said = marked[0] if len(marked) == 1 else f"{', '.join(marked[:-1])} and {marked[-1]}"
    return f"{said[0].upper()}{said[1:]}."


def _name(target: Mapping[str, Any], where: str) -> str:
    for key in ("rephrased_name", "category_name"):
        name = target.get(key)
        if isinstance(name, str) and name.strip():
            name = name.strip().rstrip(".")
            return words(name) if key == "category_name" else name
    raise DataError(f"{where}: a target without rephrased_name and category_name; name it")
