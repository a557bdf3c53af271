"""What the cases of a run are for: labels, the pool, dev for the threshold, test for nothing here."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from popen.data.medical_case import CaseReference
from popen.data.patient_splits import check_patients_apart, first_patients, split_by_patient
from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared, prepare
from popen.medical.transforms import Preprocessing

Parts = dict[str, Sequence[CaseReference]]  # labelled, pool, dev, test, unlabelled: by what they are for


def split_cases(
    references: Sequence[CaseReference],
    dev_share: float,
    test_share: float,
    labelled: int | None,
    seed: int,
    unlabelled: Sequence[CaseReference] = (),
    patients_known: bool = False,
) -> Parts:
    """The cases of each part, with all of a patient in one.

    Args:
        dev_share, test_share: of the patients; `test_share` 0 leaves that part empty.
        labelled: patients with labels; the pool has the others. None takes all, and the pool is empty.
        seed: another one is another split.
        unlabelled: cases from elsewhere, a part of their own.
        patients_known: names tell patients, so that nobody of the unlabelled may stand in another part.
    Raises:
        DataError: shares that leave nothing or too little, more labelled patients than there are, or a patient in two
            parts.
    """
    shares = {"train": 1 - dev_share - test_share, "dev": dev_share} | ({"test": test_share} if test_share else {})
    split = split_by_patient([own.patient for own in references], shares, seed)
    train = [references[i] for i in split["train"]]
    names = [own.patient for own in train]
    kept = set(first_patients(names, len(set(names)) if labelled is None else labelled, seed))
    parts: Parts = {
        "labelled": [own for i, own in enumerate(train) if i in kept],
        "pool": [own for i, own in enumerate(train) if i not in kept],
        "dev": [references[i] for i in split["dev"]],
        "test": [references[i] for i in split.get("test", ())],
        "unlabelled": unlabelled,
    }
    if patients_known:
        check_patients_apart({name: [own.patient for own in part] for name, part in parts.items()})
    return parts


def prepare_parts(
    parts: Parts, preprocessing: Preprocessing, patch_size: tuple[int, ...], pool_labels: bool
) -> tuple[list[Prepared], list[Prepared], list[Prepared]]:
    """Dev, labelled, and the pool with the unlabelled cases, whose names begin with "unlabelled/".

    Args:
        pool_labels: load the masks of the pool, for a judge that is the truth.
    Raises:
        DataError: what `prepare` refuses, or an unlabelled picture that stands in another part too.
    """
    dev, labelled = (prepare(parts[name], preprocessing, patch_size, labelled=True) for name in ("dev", "labelled"))
    pool = prepare(parts["pool"], preprocessing, patch_size, labelled=pool_labels)
    if parts["unlabelled"]:
        further = prepare(parts["unlabelled"], preprocessing, patch_size, labelled=False)
        test = prepare(parts["test"], preprocessing, patch_size, labelled=False)
        check_pictures_apart(further, {"labelled": labelled, "pool": pool, "dev": dev, "test": test})
        pool += [replace(own, name=f"unlabelled/{own.name}") for own in further]  # names may stand in both folders
    return dev, labelled, pool


def check_pictures_apart(pool: Sequence[Prepared], others: Mapping[str, Sequence[Prepared]]) -> None:
    """Check that the pool shows no picture of other parts; DataError names the first that it does.

    Windows of one value, which volumes have beside the patient, say nothing.
    """
    seen = {_pixels(own): (part, own.name) for part, cases in others.items() for own in cases if _varies(own)}
    for own in pool:
        if _varies(own) and (found := seen.get(_pixels(own))):
            raise DataError(f"pool: {own.name} is the picture of {found[1]} in {found[0]}; take it out of the pool")


def _varies(case: Prepared) -> bool:
    return bool(case.picture.amax() > case.picture.amin())


def _pixels(case: Prepared) -> bytes:
    return hashlib.sha256(case.picture.contiguous().numpy().tobytes()).digest()
