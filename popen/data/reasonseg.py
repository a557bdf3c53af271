"""ReasonSeg (LISA): a picture, a query that takes reasoning, and labelme polygons of its one target.

As LISA reads it: a label with "ignore" in it is neither right nor wrong, "flag" is no region, and smaller polygons are
painted over larger ones, so that a hole in the target is a small polygon of the other value. Evaluation asks the first
query of a picture; training asks all of them, and one question with an explanation where there is one.

A picture without a target (two of the published test set) is scored by LISA against an empty mask: 1 for a model that
marks nothing, else 0. So evaluation keeps it, with an empty mask; to training it would teach that an empty mask is
"here", and `has_target` leaves the choice to the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popen.data import rle
from popen.data.polygons import filled_mask
from popen.data.safe_io import MAX_PIXELS, DataError, inside, read_image, read_json
from popen.data.schema import Question, Sample
from popen.data.target_question import ANSWER, PHRASE, ask_phrase, ask_reason, ask_sentence

SPLITS = ("train", "val", "test")
KINDS = {True: "reasonseg_long", False: "reasonseg_short"}  # the benchmark's names for sentences and for phrases
EXPLAINED = "reasonseg_explained"


@dataclass(frozen=True)
class Region:
    """A polygon of a picture in whole or broken pixels, to be ignored or of the target."""

    points: tuple[tuple[float, float], ...]
    is_ignored: bool


@dataclass(frozen=True)
class Annotation:
    """The checked json of one picture: queries, all of them sentences or all phrases, and regions."""

    queries: tuple[str, ...]
    is_sentence: bool
    regions: tuple[Region, ...]

    @property
    def has_target(self) -> bool:
        """Whether a region is of the target; it may still be painted over."""
        return any(not region.is_ignored for region in self.regions)


@dataclass(frozen=True)
class Explanation:
    """A query of `explanatory/train.json` and the sentences that give the reason."""

    query: str
    reason: str


def split_names(root: str | Path, split: str) -> list[str]:
    """List the pictures `root/split/<name>.jpg` by name.

    Raises:
        DataError: no such split (names those there), no pictures, or a picture or a json without the other.
    """
    folder = Path(root) / split
    if split not in SPLITS or not folder.is_dir():
        there = ", ".join(name for name in SPLITS if (Path(root) / name).is_dir())
        raise DataError(f"{root}: no split {split!r}; there: {there or 'none'}")
    pictures, jsons = ({file.stem for file in folder.glob(pattern)} for pattern in ("*.jpg", "*.json"))
    for name in sorted(pictures ^ jsons):
        kinds = (".jpg", ".json") if name in pictures else (".json", ".jpg")
        raise DataError(f"{folder / name}{kinds[0]}: no {name}{kinds[1]} beside it; fetch it or remove both")
    if not pictures:
        raise DataError(f"{folder}: no pictures (*.jpg); check the folder")
    return sorted(pictures)


def read_annotation(path: str | Path) -> Annotation:
    """Read and check the json of one picture, UTF-8 or cp1252; DataError names the file and the shape."""
    data = read_json(path, fallback="cp1252")
    if not isinstance(data, Mapping):
        raise DataError(f"{path}: expected an object with text, is_sentence and shapes; fetch it again")
    queries, is_sentence, shapes = (data.get(key) for key in ("text", "is_sentence", "shapes"))
    if not isinstance(queries, list) or not queries or not all(isinstance(q, str) and q.strip() for q in queries):
        raise DataError(f"{path}: 'text' must be a list of at least one query, none blank; correct it")
    if not isinstance(is_sentence, bool):
        raise DataError(f"{path}: 'is_sentence' must be true or false, not {ascii(is_sentence)[:40]}; correct it")
    if not isinstance(shapes, list):
        raise DataError(f"{path}: 'shapes' must be a list; correct it")
    regions = []
    for index, shape in enumerate(shapes):
        label, points = (shape.get(key) for key in ("label", "points")) if isinstance(shape, Mapping) else (None, None)
        if not isinstance(label, str):
            raise DataError(f"{path}: shape {index}: no label; label it target, ignore or flag")
        if label.lower() == "flag":
            continue
        if not isinstance(points, list) or not all(isinstance(point, list) for point in points):
            raise DataError(f"{path}: shape {index}: 'points' must be a list of pairs [x, y]; correct it")
        regions.append(Region(tuple(map(tuple, points)), "ignore" in label.lower()))
    return Annotation(tuple(query.strip() for query in queries), is_sentence, tuple(regions))


def paint(regions: tuple[Region, ...], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint regions from the largest to the smallest; of two of one area, the earlier lies on top.

    Returns:
        The target and the ignored pixels, both bool (H, W), without a pixel in common.
    Raises:
        ValueError: names the region that is no polygon.
    """
    masks = []
    for index, region in enumerate(regions):
        try:
            masks.append(filled_mask(region.points, height, width))
        except ValueError as error:
            raise ValueError(f"region {index}: {error}") from None
    areas = [int(mask_HW.sum()) for mask_HW in masks]
    target_HW, ignore_HW = (np.zeros((height, width), dtype=np.bool_) for _ in range(2))
    for index in reversed(np.argsort(areas, kind="stable")):
        over, under = (ignore_HW, target_HW) if regions[index].is_ignored else (target_HW, ignore_HW)
        over |= masks[index]
        under &= ~masks[index]
    return target_HW, ignore_HW


def read_explanations(path: str | Path) -> dict[str, Explanation]:
    """Read `explanatory/train.json`, by the name of the picture without its ending.

    Raises:
        DataError: not a list of {image, query, outputs}, a blank, or a picture that is listed twice.
    """
    data = read_json(path, fallback="cp1252")
    if not isinstance(data, list):
        raise DataError(f"{path}: expected a list of image, query and outputs; fetch it again")
    found: dict[str, Explanation] = {}
    for index, row in enumerate(data):
        texts = [row.get(key) for key in ("image", "query", "outputs")] if isinstance(row, Mapping) else [None]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{path}: row {index}: image, query and outputs must be text, none blank; correct it")
        name = texts[0].removesuffix(".jpg")
        if name in found:
            raise DataError(f"{path}: row {index}: {texts[0]} is listed twice; remove one")
        found[name] = Explanation(texts[1], texts[2].strip())
    return found


def reasonseg_row(
    folder: str | Path, name: str, split: str, explanation: Explanation | None = None, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """Make the row of `folder/<name>.jpg`; the picture's bytes are kept as they are.

    Args:
        split: of "train", every query is asked, and the explanation; of the others, the first query alone.
    Returns:
        A row of FEATURES whose objects are unknown, hence none; ids "reasonseg/<split>/<name>/<n>".
    Raises:
        DataError: a broken picture or json, or a polygon that is none or lies far outside the picture.
    """
    picture, source = inside(folder, f"{name}.jpg"), inside(folder, f"{name}.json")
    image, annotation = read_image(picture, max_pixels), read_annotation(source)
    try:
        target_HW, ignore_HW = paint(annotation.regions, image.height, image.width)
    except ValueError as error:
        raise DataError(f"{source}: {error}; correct the shape") from None
    ask, kind = ask_sentence if annotation.is_sentence else ask_phrase, KINDS[annotation.is_sentence]
    queries = annotation.queries if split == "train" else annotation.queries[:1]
    asked = [(kind, ask(query), ANSWER) for query in queries]
    if split == "train" and explanation is not None:
        asked.append((EXPLAINED, ask_reason(explanation.query), f"{ANSWER} {explanation.reason}"))
    mask = rle.encode(target_HW)
    questions = tuple(
        Question(f"reasonseg/{split}/{name}/{index}", kind, question, answer, (PHRASE,), (mask,))
        for index, (kind, question, answer) in enumerate(asked)
    )
    row = Sample(image, f"{split}/{name}", (), rle.encode(ignore_HW), questions).to_row()
    return {**row, "image": {"bytes": picture.read_bytes(), "path": None}}
