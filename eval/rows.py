"""Rows of an evaluation, one per question: whole or refused, whichever process or file they come from."""

import json
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import datasets

from popen.data.safe_io import DataError, storage_error


def check_whole(rows: list[dict], where: str, expected: Collection[str] | None = None) -> None:
    """Each id stands once in the rows, and where `expected` is given, each of those and no other.

    Raises:
        DataError: an id stands twice, is missing or was not asked for; names `where`, how many and the first.
    """
    seen = Counter(row["id"] for row in rows)
    twice = sorted(name for name, count in seen.items() if count > 1)
    if twice:
        raise DataError(f"{where}: {len(twice)} ids stand twice, first {twice[0]!r}; evaluate again")
    if expected is not None:
        missing, strange = sorted(set(expected) - set(seen)), sorted(set(seen) - set(expected))
        if missing or strange:
            first = f"{len(missing)} ids are missing" if missing else f"{len(strange)} ids were not asked for"
            raise DataError(f"{where}: {first}, first {(missing or strange)[0]!r}; evaluate again on this data")


def read_rows(file: str | Path, expected: Collection[str] | None = None) -> list[dict]:
    """The rows of a `rows.jsonl`, in its order.

    Raises:
        DataError: no such file, a line that is not a row, or what `check_whole` refuses.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"{file}: no rows there; run the evaluation that writes the file first")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
            rows[-1]["id"]
        except (json.JSONDecodeError, TypeError, KeyError):
            raise DataError(f"{file}:{number}: not a row with an id; evaluate again") from None
    if not rows:
        raise DataError(f"{file}: no rows; evaluate again")
    check_whole(rows, str(file), expected)
    return rows


def write_rows(file: str | Path, rows: list[dict]) -> None:
    """A line of JSON per row; StorageError where the disk refuses."""
    try:
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise storage_error(error, file, "evaluate again") from error


def check_source(ids: Collection[str], source: str, where: str) -> None:
    """Check that rows are of the data set that a report will name: its name stands first in every id.

    Raises:
        DataError: names `where`, the first other id, and the way out.
    """
    strange = next((name for name in ids if name.partition("/")[0] != source), None)
    if strange is not None:
        raise DataError(
            f"{where}: question {strange!r} is not of {source}, whose ids begin with '{source}/'; give what its "
            "converter wrote (docs/benchmarks.md), or score other data with eval.segmentation"
        )


def question_ids(
    dataset: datasets.Dataset, pictures: int, words: Callable[[str], str | None] = lambda answer: answer
) -> list[str]:
    """Ids of the questions about the first pictures of a split whose true answer `words` makes something of."""
    rows = dataset.select_columns(["questions"]).select(range(pictures))  # pictures stay encoded
    return [q["id"] for row in rows for q in row["questions"] if words(q["answer"]) is not None]
