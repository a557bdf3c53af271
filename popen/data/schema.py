"""The one data schema, of the rows of `popen.data.sample`: their columns, and how they are written, read and checked.

A split is a folder of its own, `path/<split>/`, in the Arrow format of `datasets.load_from_disk`.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Features, List, Value

from popen.data.safe_io import DataError, storage_error
from popen.data.sample import SEG, Question, Sample, empty_ignore, repeated

__all__ = [  # of a row, too: most who store rows make them
    "FEATURES", "SEG", "Question", "Sample", "check_unique_ids", "content_fingerprint", "empty_ignore", "load_split",
    "split_names", "write_dataset",
]  # fmt: skip

_RLE = {"size": List(Value("int32")), "counts": Value("string")}
FEATURES = Features(
    {
        "image": datasets.Image(),
        "image_id": Value("string"),
        "objects": List(Value("string")),  # everything visible: what an answer names beyond it is hallucinated
        "ignore": _RLE,  # pixels nobody labelled: neither right nor wrong
        "questions": List(
            {
                "id": Value("string"),
                "kind": Value("string"),
                "question": Value("string"),
                "answer": Value("string"),
                "phrases": List(Value("string")),
                "masks": List(_RLE),
            }
        ),
    }
)


def write_dataset(rows: Iterable[Mapping[str, Any] | Sample], path: str | Path, split: str) -> datasets.Dataset:
    """Check rows one by one and write them as `path/<split>`, all or nothing; an earlier split is replaced.

    Args:
        rows: rows of FEATURES (an image may be {"bytes": ...}, which are kept as they are) or Samples; may stream.
        path: the folder of the dataset, made if need be.
        split: letters, digits, '-' and '_'.
    Returns:
        The split, loaded from disk.
    Raises:
        DataError: a bad row, a question id twice, no rows at all, or something else stands at `path/<split>`.
        StorageError: the disk refused; an earlier split is intact.
    """
    target = _split_folder(path, split)
    if target.exists() and not _is_split(target):
        raise DataError(f"{target}: exists and is not a dataset split; move it away or write elsewhere")
    digest = hashlib.sha256()
    own: list[Exception] = []  # what the rows raised: datasets would wrap it into an error about its generator

    def checked() -> Iterator[dict[str, Any]]:
        try:
            yield from _checked(iter(rows), digest)
        except Exception as error:
            own.append(error)
            raise

    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{split}.", dir=path))
    except OSError as error:
        raise storage_error(error, target, "nothing was changed") from error
    try:
        built = datasets.Dataset.from_generator(
            checked, features=FEATURES, cache_dir=str(work / "cache"), fingerprint=split, split=split
        )
        # the name of the content, so that the same rows give the same files
        built = datasets.Dataset(built.data, info=built.info, split=built.split, fingerprint=digest.hexdigest()[:16])
        built.save_to_disk(work / "new")
        if target.exists():
            os.rename(target, work / "old")
        os.rename(work / "new", target)
    except Exception as error:
        if own:
            raise own[0] from None
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__
        if cause is not None:
            raise storage_error(cause, target, "an earlier split is intact") from error
        raise
    finally:
        if (work / "old").exists() and not target.exists():  # also after Ctrl-C; should this fail, nothing is removed
            os.rename(work / "old", target)
        shutil.rmtree(work, ignore_errors=True)
    return load_split(path, split)


def load_split(path: str | Path, split: str) -> datasets.Dataset:
    """Load `path/<split>`, memory-mapped; rows become Samples by `Sample.from_row`.

    Pictures stay as bytes until then: `Sample.from_row` decodes them under `safe_io`'s limits and names the row.

    Raises:
        DataError: no such folder, no such split (names those there), broken files, or other columns than FEATURES.
    """
    target = _split_folder(path, split)
    there = _splits(path)
    if split not in there:
        raise DataError(f"{path}: no split {split!r}; there: {', '.join(there) or 'none'}")
    try:
        dataset = datasets.load_from_disk(str(target))
    except Exception as error:  # arrow, json and datasets each have their own
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{target}: cannot be loaded ({reason}); write the split again") from error
    found = dict(dataset.features)
    if isinstance(found.get("image"), datasets.Image):
        found["image"] = FEATURES["image"]  # saved decoded or not
    for column in [*FEATURES, *found]:
        if found.get(column) != FEATURES.get(column):
            state = "differs from" if column in FEATURES and column in found else "is not in both it and"
            raise DataError(f"{target}: column {column!r} {state} the schema; convert the data again")
    rows = dataset.cast_column("image", datasets.Image(decode=False))
    rows._fingerprint = dataset._fingerprint  # they are the rows that were written
    return rows


def split_names(path: str | Path) -> list[str]:
    """Name the splits of a data set in alphabetical order; DataError where there is no such folder or none in it."""
    there = _splits(path)
    if not there:
        raise DataError(
            f"{path}: no split in it, no dataset.json and no images/ with masks/ or labels/; write a split with "
            "write_dataset or a converter of data_tools"
        )
    return there


def content_fingerprint(rows: Iterable[Mapping[str, Any] | Sample]) -> str:
    """The name that `write_dataset` gives these rows: 16 digits of a sha256 over words, masks and pixels.

    Raises:
        DataError: a bad row, a question id twice, or no rows at all.
    """
    digest = hashlib.sha256()
    for _ in _checked(iter(rows), digest):
        pass
    return digest.hexdigest()[:16]


def check_unique_ids(dataset: datasets.Dataset) -> None:
    """Check that every question id stands exactly once in the dataset; DataError names the first that does not."""
    rows = dataset.select_columns(["questions"])  # images stay encoded
    twice = repeated(question["id"] for row in rows for question in row["questions"])
    if twice is not None:
        raise DataError(f"question id {twice!r} stands twice in the dataset; rename or remove one")


def _checked(rows: Iterator[Mapping[str, Any] | Sample], digest: Any) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for index, given in enumerate(rows):
        row = given.to_row() if isinstance(given, Sample) else dict(given)
        try:
            sample = Sample.from_row(row)
        except DataError as error:
            raise DataError(f"row {index}: {error}") from None
        for question in sample.questions:
            if question.id in seen:
                raise DataError(f"{sample.image_id}/{question.id}: an earlier row has this question id; rename one")
            seen.add(question.id)
        row = sample.to_row()
        if isinstance(given, Mapping) and isinstance(given["image"], Mapping):
            row["image"] = {"bytes": given["image"]["bytes"], "path": None}  # as it came: smaller than a PNG of it
        words = json.dumps({**row, "image": sample.image.size}, default=lambda number: number.item())
        digest.update(words.encode())
        digest.update(sample.image.tobytes())
        yield row
    if not seen:
        raise DataError("no questions to write; check the source folder and the split")


def _split_folder(path: str | Path, split: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", split):
        raise DataError(f"split {split!r}: use letters, digits, '-' and '_' only")
    return Path(path) / split


def _splits(path: str | Path) -> list[str]:
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such dataset folder; check the path or run the converter of data_tools")
    return sorted(folder.name for folder in Path(path).iterdir() if folder.name[0] != "." and _is_split(folder))


def _is_split(folder: Path) -> bool:
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
