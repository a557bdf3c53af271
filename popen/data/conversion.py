"""One split out of the records of a foreign format; whatever does not become a question is counted and named."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from popen.data.safe_io import DataError
from popen.data.schema import write_dataset

Record = TypeVar("Record")


@dataclass(frozen=True)
class Converted:
    """The row that a record became, None where nothing can be asked of it, and what was left out, by reason."""

    row: Mapping[str, Any] | None
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """What became of a split: pictures, targets, questions by kind, what was left out by reason, and bad pictures."""

    split: str
    images: int
    targets: int
    kinds: Mapping[str, int]
    left_out: Mapping[str, int]
    bad: tuple[str, ...]

    def lines(self) -> list[str]:
        """The conversion in words, one line for the split and one for every reason."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        questions = sum(self.kinds.values())
        told = [f"{self.split}: {self.images} images, {questions} questions ({kinds}), {self.targets} targets"]
        told += [f"  left out: {count} {reason}" for reason, count in sorted(self.left_out.items())]
        if self.bad:
            told.append(f"  left out: {len(self.bad)} bad pictures, named above")
        return told


def convert_split(
    records: Sequence[Record],
    convert: Callable[[Record], Converted],
    out: str | Path,
    split: str,
    most_bad: int = 0,
) -> Conversion:
    """Convert records one by one into `out/<split>`, all or nothing, under a progress bar.

    Args:
        records: whatever `convert` takes, one a picture.
        most_bad: so many records may raise a DataError; each is named on stderr and left out.
    Raises:
        DataError: of the record that is one too many, or what `write_dataset` refuses; nothing is written.
        StorageError: the disk refused.
    """
    kinds: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    bad: list[str] = []
    images = targets = 0

    bar = tqdm(records, desc=split, unit="image")

    def rows() -> Iterator[Mapping[str, Any]]:
        nonlocal images, targets
        for record in bar:
            try:
                made = convert(record)
            except DataError as error:
                if len(bad) == most_bad:
                    raise
                bad.append(str(error))
                tqdm.write(f"left out: {error}", file=sys.stderr)
                continue
            left_out.update(made.left_out)
            if made.row is None or not made.row["questions"]:
                left_out["pictures of which nothing can be asked"] += 1
                continue
            images += 1
            kinds.update(question["kind"] for question in made.row["questions"])
            targets += sum(len(question["masks"]) for question in made.row["questions"])
            yield made.row
        if not images:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none there"
            raise DataError(f"{out}: split {split}: no picture came of {len(records)} ({why}); check the source")

    try:
        write_dataset(rows(), out, split)
    finally:
        bar.close()  # so that an error gets a line of its own
    return Conversion(split, images, targets, kinds, left_out, tuple(bad))
