"""Published numbers of a benchmark, each with its protocol and its source, from `eval/published/`.

Only rows that were read in a paper, a README or a result table; nothing from memory. Numbers are percent.
"""

from dataclasses import dataclass
from pathlib import Path

from popen.data.safe_io import DataError, read_json

FOLDER = Path(__file__).parent / "published"
PROTOCOLS = {"free": "free generation", "forced": "teacher-forced", "unknown": "not known"}


@dataclass(frozen=True)
class Published:
    """One system's numbers on one data set: {split: {metric: percent}}; `note` says what to know before comparing."""

    system: str
    dataset: str
    protocol: str
    numbers: dict[str, dict[str, float]]
    source: str
    note: str = ""


def read_published(name: str) -> list[Published]:
    """The rows of `eval/published/<name>.json`, in the file's order.

    Raises:
        DataError: no such file, or a row that lacks something or has another protocol than PROTOCOLS.
    """
    path = FOLDER / f"{name}.json"
    rows = []
    for number, row in enumerate(read_json(path)):
        missing = [key for key in ("system", "dataset", "protocol", "numbers", "source") if not row.get(key)]
        if missing:
            raise DataError(f"{path}: row {number}: no {missing[0]}; correct it")
        if row["protocol"] not in PROTOCOLS:
            raise DataError(f"{path}: row {number}: protocol {row['protocol']!r} is none of {', '.join(PROTOCOLS)}")
        rows.append(Published(**row))
    return rows
