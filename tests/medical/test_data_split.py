"""What cases are for: every one for one thing, patients whole, and no picture of the pool anywhere else."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from popen.data.medical_case import Case
from popen.data.safe_io import DataError
from popen.medical.cohort import Prepared
from popen.medical.data_split import check_pictures_apart, prepare_parts, split_cases
from popen.medical.transforms import Preprocessing


@dataclass(frozen=True)
class Numbered:
    """A picture that its number is the seed of, in memory, as a reference."""

    number: int
    patient: str
    masks: bool = True

    @property
    def case_id(self):
        return f"c{self.number}"

    def load(self):
        image = np.random.default_rng(self.number).normal(size=(1, 4, 4)).astype(np.float32)
        return Case(self.case_id, self.patient, image, image > 0 if self.masks else None, (1.0, 1.0))


CASES = [Numbered(number, f"p{number // 2}") for number in range(20)]  # ten patients


def test_every_case_is_in_one_part_with_its_patient():
    parts = split_cases(CASES, 0.2, 0.3, 2, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {
        "labelled": 4, "pool": 6, "dev": 4, "test": 6, "unlabelled": 0,
    }  # fmt: skip
    assert sorted(own.number for part in parts.values() for own in part) == list(range(20))
    where = {(own.patient, name) for name, part in parts.items() for own in part}
    assert len(where) == 10


def test_without_test_and_with_all_labels_dev_is_what_it_was():
    """A test part takes from training alone, and all labels leave no pool."""
    parts = split_cases(CASES, 0.2, 0, None, seed=1)
    assert len(parts["labelled"]) == 16 and not parts["pool"] and not parts["test"]
    with pytest.raises(DataError, match="9 patients: give a number from 1 to 8"):
        split_cases(CASES, 0.2, 0, 9, seed=1)
    with pytest.raises(DataError, match="give each split a positive share, together 1"):
        split_cases(CASES, 0.5, 0.5, None, seed=1)


def test_a_patient_of_the_pool_is_nowhere_else():
    stranger = [Numbered(40, "p99", masks=False)]
    assert split_cases(CASES, 0.2, 0, 2, 1, stranger, patients_known=True)["unlabelled"] == stranger
    known = [Numbered(40, "p3", masks=False)]
    with pytest.raises(DataError, match=r"patient 'p3': in the splits '.*' and 'unlabelled'; keep all cases in one"):
        split_cases(CASES, 0.2, 0, 2, 1, known, patients_known=True)
    assert split_cases(CASES, 0.2, 0, 2, 1, known)["unlabelled"] == known  # mere numbers


@pytest.mark.parametrize("pool_labels", [False, True])
def test_parts_are_loaded_and_the_unlabelled_join_the_pool(pool_labels):
    parts = split_cases(CASES, 0.2, 0, 2, 1, [Numbered(40, "p", masks=False)])
    dev, labelled, pool = prepare_parts(parts, Preprocessing((4, 4)), (4, 4), pool_labels)
    assert [len(part) for part in (dev, labelled, pool)] == [4, 4, 13] and pool[-1].name == "unlabelled/c40"
    assert all(own.masks is not None for own in dev + labelled) and pool[-1].masks is None
    assert all((own.masks is not None) == pool_labels for own in pool[:-1])


@pytest.mark.parametrize("part", ["labelled", "pool", "dev", "test"])
def test_a_picture_of_another_part_is_not_taken_for_the_pool(part):
    parts = split_cases(CASES, 0.2, 0.2, 2, 1)
    other = parts[part][0]
    leaked = [Numbered(other.number, "elsewhere", masks=False)]
    with pytest.raises(DataError, match=rf"pool: c\d+ is the picture of {other.case_id} in {part}; take it out"):
        prepare_parts(parts | {"unlabelled": leaked}, Preprocessing((4, 4)), (4, 4), pool_labels=False)


def test_windows_of_one_value_say_nothing():
    blank = Prepared("a@0-0", torch.zeros(1, 4, 4), None, (1.0, 1.0), "p")
    check_pictures_apart([blank], {"dev": [blank]})
