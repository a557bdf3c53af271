"""Splits of a data set by patient: two pictures of one person are never on both sides."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from popen.data.safe_io import DataError, read_json, storage_error, write_json

SPLITS = "splits.json"


def split_by_patient(patients: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, tuple[int, ...]]:
    """Split cases at random with all cases of a patient together.

    The split is a function of the set of patients, the shares and the seed: the order of the cases does not matter.

    Args:
        patients: the patient of each case.
        shares: the share of the patients that each split gets, together 1.
        seed: another one is another split.
    Returns:
        Indices of the cases of each split, ascending.
    Raises:
        DataError: shares that are not positive or not together 1, or a split that would stay empty.
    """
    if not shares or not all(0 < share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise DataError(f"shares {dict(shares)}: give each split a positive share, together 1")
    order = _shuffled(patients, seed)
    ends = [round(edge * len(order)) for edge in np.cumsum(list(shares.values()))]
    split_of = {}
    for name, start, end in zip(shares, [0, *ends], ends, strict=False):
        if end == start:
            raise DataError(f"split {name!r}: {shares[name]:.1%} of {len(order)} patients is none; raise its share")
        split_of |= dict.fromkeys(order[start:end], name)
    return {name: tuple(i for i, patient in enumerate(patients) if split_of[patient] == name) for name in shares}


def first_patients(patients: Sequence[str], count: int, seed: int) -> tuple[int, ...]:
    """The cases of `count` patients drawn at random, as a labelled subset; a larger one holds every smaller one.

    Args:
        patients: the patient of each case.
    Returns:
        Indices of their cases, ascending.
    Raises:
        DataError: fewer patients than that, or a count under 1.
    """
    order = _shuffled(patients, seed)
    if not 1 <= count <= len(order):
        raise DataError(f"{count} patients: give a number from 1 to {len(order)}, as many as there are")
    kept = set(order[:count])
    return tuple(i for i, patient in enumerate(patients) if patient in kept)


def check_patients_apart(splits: Mapping[str, Iterable[str]]) -> None:
    """Check that no patient stands in two splits; DataError names the first who does.

    Args:
        splits: the patients of each split; one may stand there more than once.
    """
    first_in: dict[str, str] = {}
    for name, patients in splits.items():
        for patient in sorted(set(patients)):
            if patient in first_in:
                raise DataError(
                    f"patient {patient!r}: in the splits {first_in[patient]!r} and {name!r}; keep all cases in one"
                )
            first_in[patient] = name


def write_splits(folder: str | Path, parts: Mapping[str, Sequence[str]]) -> None:
    """Write the names of the cases of each part into `splits.json` of a folder, which is made; StorageError."""
    path = Path(folder) / SPLITS
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path, "nothing was written") from error
    write_json(path, {name: list(cases) for name, cases in parts.items()})


def read_split_part(path: str | Path, part: str) -> tuple[str, ...]:
    """The names of the cases of a part, as `write_splits` wrote them.

    Raises:
        DataError: no such file, not such a file, no such part, or a part without cases.
    """
    found = read_json(path, max_bytes=2**26)
    if not isinstance(found, Mapping) or not all(
        isinstance(cases, list) and all(isinstance(case, str) for case in cases) for cases in found.values()
    ):
        raise DataError(f"{path}: expected lists of case names by part; give the {SPLITS} of recipes/medical.py")
    if not found.get(part):
        there = ", ".join(f"{name} ({len(cases)})" for name, cases in found.items() if cases)
        raise DataError(f"{path}: no cases in the part {part!r}; there: {there or 'none'}")
    return tuple(found[part])


def _shuffled(patients: Sequence[str], seed: int) -> list[str]:
    names = sorted(set(patients))
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
