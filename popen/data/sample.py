"""A row of the schema: one image with its questions, which share its encoding in training.

In an answer `<seg>` stands after each phrase that has a mask: "The dog <seg> is here." How rows are stored is
`popen.data.schema`'s; this module needs no `datasets`, which answering a question does not wait for.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from popen.data import rle
from popen.data.safe_io import DataError, check_image, decode_image

SEG = "<seg>"
COLUMNS = ("image", "image_id", "objects", "ignore", "questions")


@dataclass(frozen=True)
class Question:
    """A question about an image, its answer, and a phrase and an RLE mask for each `<seg>` in the answer."""

    id: str
    kind: str
    question: str
    answer: str
    phrases: tuple[str, ...]
    masks: tuple[dict[str, Any], ...]

    def decoded_masks(self, height: int, width: int) -> np.ndarray:
        """Decode the masks to bool (T, height, width), T = 0 for a question without targets.

        Raises:
            DataError: a mask is malformed or of another size.
        """
        masks_THW = np.zeros((len(self.masks), height, width), dtype=np.bool_)
        for index, mask in enumerate(self.masks):
            _check_mask(mask, height, width, f"{self.id}: mask {index}")
            masks_THW[index] = rle.decode(mask)
        return masks_THW


@dataclass(frozen=True)
class Sample:
    """One row: an RGB image, what is visible in it, the pixels to ignore (RLE), and its questions."""

    image: Image.Image
    image_id: str
    objects: tuple[str, ...]
    ignore: dict[str, Any]
    questions: tuple[Question, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Sample":
        """Check a row of the schema and return it as a Sample.

        Args:
            row: as `datasets` gives it; the image a PIL image, or {"bytes": an encoded picture}.
        Raises:
            DataError: names `image_id/question id` and what is wrong.
        """
        missing = [column for column in COLUMNS if row.get(column) is None]
        if missing:
            raise DataError(f"{row.get('image_id')}: column {missing[0]!r} is missing or empty; see popen.data.schema")
        image_id, image = row["image_id"], row["image"]
        if isinstance(image, Mapping):
            image = decode_image(image.get("bytes") or b"", str(image_id))
        else:
            image = check_image(image, str(image_id))
        questions = tuple(_question(fields, str(image_id)) for fields in row["questions"])
        sample = cls(image, image_id, tuple(row["objects"]), row["ignore"], questions)
        sample._check()
        return sample

    def to_row(self) -> dict[str, Any]:
        """Return the row that `from_row` reads back."""
        return {
            "image": self.image,
            "image_id": self.image_id,
            "objects": list(self.objects),
            "ignore": self.ignore,
            "questions": [{**vars(q), "phrases": list(q.phrases), "masks": list(q.masks)} for q in self.questions],
        }

    def decoded_ignore(self) -> np.ndarray:
        """Decode the ignored pixels to bool (H, W)."""
        return rle.decode(self.ignore)

    def _check(self) -> None:
        width, height = self.image.size
        _check_mask(self.ignore, height, width, f"{self.image_id}: ignore")
        for question in self.questions:
            where = f"{self.image_id}/{question.id}"
            if not question.id.strip() or not question.question.strip():
                raise DataError(f"{where}: blank id or question; remove it")
            if SEG in question.question:
                raise DataError(f"{where}: {SEG} stands in the question and belongs in answers; remove it")
            counts = question.answer.count(SEG), len(question.phrases), len(question.masks)
            if len(set(counts)) != 1:
                raise DataError(
                    f"{where}: {counts[0]} {SEG} in the answer, {counts[1]} phrases, {counts[2]} masks; match"
                )
            for index, mask in enumerate(question.masks):
                _check_mask(mask, height, width, f"{where}: mask {index}")
        twice = repeated(question.id for question in self.questions)
        if twice is not None:
            raise DataError(f"{self.image_id}/{twice}: two questions of the row have this id; rename one")


def empty_ignore(height: int, width: int) -> dict[str, Any]:
    """Return the RLE of a (height, width) mask that ignores nothing."""
    return rle.encode(np.zeros((height, width), dtype=np.bool_))


def _question(fields: Mapping[str, Any], image_id: str) -> Question:
    where = f"{image_id}/{fields.get('id')}"
    for name in Question.__dataclass_fields__:
        value = fields.get(name)
        if value is None:
            raise DataError(f"{where}: {name!r} is missing; see popen.data.schema")
        if name in ("phrases", "masks"):
            kind = str if name == "phrases" else object  # masks are checked with the size of the image
            if not isinstance(value, list | tuple) or not all(isinstance(entry, kind) for entry in value):
                raise DataError(f"{where}: {name!r} must be a list of {'text' if kind is str else 'RLE'}; correct it")
        elif not isinstance(value, str):
            raise DataError(f"{where}: {name!r} must be text, not {type(value).__name__}; correct it")
    texts = {name: fields[name] for name in ("id", "kind", "question", "answer")}
    return Question(**texts, phrases=tuple(fields["phrases"]), masks=tuple(fields["masks"]))


def _check_mask(mask: Mapping[str, Any], height: int, width: int, where: str) -> None:
    try:
        rle.area(mask)
    except ValueError as error:
        raise DataError(f"{where}: {error}; correct or remove it") from None
    if list(mask["size"]) != [height, width]:
        raise DataError(f"{where}: size {list(mask['size'])} is not the image's [{height}, {width}]; resize the mask")


def repeated(ids: Iterable[str]) -> str | None:
    """The first of some ids that stands more than once."""
    return next((name for name, count in Counter(ids).items() if count > 1), None)
