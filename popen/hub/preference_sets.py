"""Reads a mined preference set that came from somewhere else, and checks that it is what mining wrote."""

import hashlib
import json
from pathlib import Path

import datasets
from datasets import Dataset, Features

from popen.data.preference_schema import SEG_FEATURES, TEXT_FEATURES
from popen.data.safe_io import DataError, read_json

REPORT = "mining.json"
AGAIN = "fetch the set again, or mine it again with recipes/mine.py"


def read_preferences(folder: str | Path) -> tuple[Dataset, Dataset, dict]:
    """P_t, P_s and the mining report of a folder, checked by schema, counts and the fingerprint of their ids.

    Raises:
        DataError: something is missing, has other columns than popen's, or is not what the report was written for.
    """
    folder = Path(folder)
    if not (folder / REPORT).is_file():
        raise DataError(f"{folder}: no {REPORT} in it, so no preference set that mining finished; {AGAIN}")
    report = read_json(folder / REPORT)
    text, seg = (_stream(folder / name, own) for name, own in (("text", TEXT_FEATURES), ("seg", SEG_FEATURES)))
    kept = {"text": len(text), "seg": sum(len(targets) for targets in seg["targets"][:])}
    for stream, count in kept.items():
        said = report.get(stream, {}).get("kept") if isinstance(report, dict) else None
        if said != count:
            raise DataError(f"{folder / stream}: {count} preferences, {REPORT} says {said}; {AGAIN}")
    return text, seg, report


def _stream(folder: Path, own: Features) -> Dataset:
    try:
        rows = datasets.load_from_disk(str(folder))
        written = read_json(folder / "state.json")["_fingerprint"]
    except Exception as error:  # arrow, json and datasets each have their own
        raise DataError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:200]}); {AGAIN}") from error
    for column in [*own, *rows.features]:
        if rows.features.get(column) != own.get(column):
            raise DataError(f"{folder}: column {column!r} is not as in popen.data.preference_schema; {AGAIN}")
    found = hashlib.sha256(json.dumps(rows["id"][:]).encode()).hexdigest()[:16]  # as mining wrote it
    if found != written:
        raise DataError(f"{folder}: fingerprint {found}, written was {written}: the rows were changed; {AGAIN}")
    return rows
