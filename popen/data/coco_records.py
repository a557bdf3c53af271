"""What every COCO-style file of annotations promises: an id stands once, and so does a picture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popen.data.safe_io import DataError


def check_once(path: str | Path, listed: str, records: Sequence[Mapping[str, Any]], key: str) -> None:
    """Check that no two records have the same value.

    Args:
        path, listed: the file and the list in it, for the error. key: of the value in every record.
    Raises:
        DataError: names the first value that stands more than once, and how often. KeyError, TypeError where a record
            has none or one that cannot be compared, for the caller to say of which format it is not.
    """
    value, count = next(iter(Counter(record[key] for record in records).most_common(1)), (None, 0))
    if count > 1:
        raise DataError(f"{path}: {listed}: {key} {value!r} stands {count} times; keep one of them")
