"""An audit of a data set in the schema before anything is trained on it: every row and question, not the first fault.

An error is what training refuses or would learn wrongly, and a picture that stands in two splits; a warning is what
may be meant so. Nothing here changes the data.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from popen.data import rle
from popen.data.faults import Audit, Fault, FaultLog
from popen.data.safe_io import DataError, decode_image
from popen.data.schema import SEG, load_split, split_names

TINY_PIXELS = 16  # a smaller target is more often a slip of the pen than a thing
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class SplitCounts:
    """What a split holds: question kinds, targets a question, target areas as shares of their pictures."""

    images: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    targets: Counter[int] = field(default_factory=Counter)
    shares: list[float] = field(default_factory=list)
    unnamed: int = 0

    def lines(self, split: str) -> list[str]:
        """The counts as a small table."""
        questions, targets = self.kinds.total(), len(self.shares)
        told = [f"{split}: {self.images} pictures, {questions} questions, {targets} targets"]
        for kind, count in sorted(self.kinds.items(), key=lambda item: (-item[1], item[0])):
            told.append(f"  {kind or '(blank)':<16} {count:>8} questions  {count / questions:>6.1%}")
        if self.targets:
            spread = ", ".join(f"{number}: {count}" for number, count in sorted(self.targets.items()))
            told.append(f"  questions by number of targets   {spread}")
        if targets:
            values = np.quantile(self.shares, QUANTILES)
            shown = ", ".join(f"{q:.0%} {value:.3%}" for q, value in zip(QUANTILES, values, strict=True))
            told.append(f"  area of a target, of the picture {shown}")
        if self.unnamed:
            told.append(f"  objects that no answer names     {self.unnamed}")
        return told


def audit_dataset(path: str | Path, splits: list[str] | None = None) -> Audit:
    """Check every row of a data set, under a progress bar; a bad row does not end it.

    Args:
        path: the folder of a data set in the schema.
        splits: those to check; all of the folder by default.
    Raises:
        DataError: no such folder, or no split in it.
    """
    log = FaultLog()
    counts: dict[str, SplitCounts] = {}
    there = split_names(path)
    seen = _Seen()
    for split in dict.fromkeys(splits or there):
        try:
            dataset = load_split(path, split)
        except DataError as error:
            log.tell(split, Fault("split cannot be read", str(error)))
            continue
        counts[split] = SplitCounts()
        rows = dataset.cast_column("image", datasets.Image(decode=False))
        for index, row in enumerate(tqdm(rows, desc=split, unit="row")):
            where = f"{split}: row {index}: {row['image_id']}"
            for fault in _faults(row, counts[split], seen, split, f"{split}, row {index}"):
                log.tell(f"{where}: {fault.question_id}" if fault.question_id else where, fault)
    return log.audit(counts)


class _Seen:
    """Ids and pictures of the rows so far, of all splits."""

    def __init__(self) -> None:
        self.questions: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.pictures: dict[bytes, tuple[str, str]] = {}

    def faults(self, row: Mapping[str, Any], image: Image.Image | None, split: str, place: str) -> Iterator[Fault]:
        for name in (question["id"] for question in row["questions"] or () if question and question["id"]):
            if name in self.questions:
                what = f"the question id also stands in {self.questions[name]}; rename one"
                yield Fault("question id twice", what, name)
            self.questions.setdefault(name, place)
        first = self.names.setdefault(row["image_id"] or place, place)
        if first != place:
            yield Fault("image id twice", f"the image id also stands in {first}; join the rows or rename", "", False)
        if image is None:
            return
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        other, first = self.pictures.setdefault(pixels, (split, place))
        if other != split:
            yield Fault("picture in two splits", f"the same picture stands in {first}; keep it in one split")
        elif first != place:
            yield Fault("picture twice", f"the same picture stands in {first}; join the rows", "", False)


def _faults(row: Mapping[str, Any], counts: SplitCounts, seen: _Seen, split: str, place: str) -> Iterator[Fault]:
    """All that is wrong in one row; what is right is counted."""
    counts.images += 1
    for column in ("image", "image_id", "objects", "ignore", "questions"):
        if row[column] is None:
            yield Fault("missing column", f"{column!r} is missing; write the row again")
    if row["image_id"] is not None and not row["image_id"].strip():
        yield Fault("blank text", "the image id is blank; give it one")
    image = size = ignore_HW = None
    if row["image"] is not None:
        try:
            image = decode_image(row["image"]["bytes"] or b"", "picture")
            size = image.size[::-1]
        except DataError as error:
            yield Fault("bad picture", str(error))
    yield from seen.faults(row, image, split, place)
    if row["ignore"] is not None:
        wrong = _mask_fault(row["ignore"], size)
        if wrong:
            yield Fault("bad mask", f"ignore: {wrong}")
        else:
            ignore_HW = rle.decode(row["ignore"])
            size = ignore_HW.shape  # stands in for a picture that cannot be read
    objects = [name for name in row["objects"] or () if (name or "").strip()]
    if row["objects"] is not None and len(objects) != len(row["objects"]):
        yield Fault("blank text", "an object is blank; name it or remove it")
    questions = [question for question in row["questions"] or () if question is not None]
    for question in questions:
        yield from _question_faults(question, size, ignore_HW, objects, counts)
    answers = _padded(" ".join(question["answer"] or "" for question in questions))
    counts.unnamed += sum(_padded(name) not in answers for name in objects)
    if row["questions"] is not None and not questions:
        yield Fault("no questions", "the row has no questions; remove it", "", False)


def _question_faults(
    question: Mapping[str, Any],
    size: tuple[int, int] | None,
    ignore_HW: np.ndarray | None,
    objects: list[str],
    counts: SplitCounts,
) -> Iterator[Fault]:
    name = question["id"] or ""

    def fault(sort: str, what: str, is_error: bool = True) -> Fault:
        return Fault(sort, what, name or "(no id)", is_error)

    for key in ("id", "kind", "question", "answer"):
        if not (question[key] or "").strip():
            yield fault("blank text", f"{key} is blank; fill it in or remove the question", key != "kind")
    answer, phrases, masks = question["answer"] or "", question["phrases"] or [], question["masks"] or []
    if SEG in (question["question"] or ""):
        yield fault("mark in a question", f"{SEG} stands in the question and belongs in answers; remove it")
    found = answer.count(SEG), len(phrases), len(masks)
    if len(set(found)) > 1:
        what = f"{found[0]} {SEG} in the answer, {found[1]} phrases, {found[2]} masks; make them as many"
        yield fault("counts differ", what)
    counts.kinds[question["kind"] or ""] += 1
    counts.targets[len(masks)] += 1
    for index, mask in enumerate(masks):
        wrong = _mask_fault(mask, size)
        if wrong:
            yield fault("bad mask", f"mask {index}: {wrong}")
            continue
        area = rle.area(mask)
        counts.shares.append(area / (mask["size"][0] * mask["size"][1]))
        if area == 0:
            yield fault("empty mask", f"mask {index} is empty; remove the target from the answer")
        elif ignore_HW is not None and ignore_HW[rle.decode(mask)].all():
            yield fault("ignored mask", f"mask {index} lies wholly in ignored pixels: nothing is learned of it", False)
        elif area < TINY_PIXELS:
            yield fault("tiny target", f"mask {index} has {area} pixels; is it meant?", False)
    for phrase in phrases:
        if not (phrase or "").strip():
            yield fault("blank phrase", "a phrase is blank; name the target")
        elif not any(_padded(thing) in _padded(phrase) for thing in objects):
            what = f"{ascii(phrase)[:60]} names nothing of the row's objects: a corrector takes it for hallucinated"
            yield fault("phrase beyond objects", what, False)


def _mask_fault(mask: Mapping[str, Any] | None, size: tuple[int, int] | None) -> str | None:
    try:
        rle.area(mask or {})
    except (ValueError, KeyError) as error:
        return f"{error}; encode it again"
    if size is not None and tuple(mask["size"]) != size:
        return f"of size {list(mask['size'])}, the picture's is {list(size)}; resize it"
    return None


def _padded(text: str) -> str:
    """Words between single spaces, so that "car" is found in "the car" and not in "carpet"."""
    spaced = "".join(letter if letter.isalnum() else " " for letter in text.lower().replace(SEG, " "))
    return f" {' '.join(spaced.split())} "
