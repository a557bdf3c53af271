"""Whole patients, the same split for the same seed, and no patient on two sides."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.patient_splits import (
    check_patients_apart,
    first_patients,
    read_split_part,
    split_by_patient,
    write_splits,
)
from popen.data.safe_io import DataError, StorageError

PATIENTS = [f"p{i // 3}" for i in range(60)]  # 20 patients of 3 cases


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 30).map(str), min_size=12, max_size=80), st.integers(0, 2**32 - 1))
def test_every_case_is_in_one_split_and_patients_stay_whole(patients, seed):
    if len(set(patients)) < 6:
        return
    splits = split_by_patient(patients, {"train": 0.5, "dev": 0.25, "test": 0.25}, seed)
    assert sorted(i for indices in splits.values() for i in indices) == list(range(len(patients)))
    check_patients_apart({name: [patients[i] for i in indices] for name, indices in splits.items()})


def test_shares_are_of_patients():
    splits = split_by_patient(PATIENTS, {"train": 0.7, "dev": 0.1, "test": 0.2}, 0)
    assert [len({PATIENTS[i] for i in split}) for split in splits.values()] == [14, 2, 4]
    assert [len(split) for split in splits.values()] == [42, 6, 12]


def test_the_seed_decides_and_the_order_of_cases_does_not():
    shares = {"train": 0.8, "dev": 0.2}
    split = split_by_patient(PATIENTS, shares, 3)
    assert split == split_by_patient(PATIENTS, shares, 3) != split_by_patient(PATIENTS, shares, 4)
    mixed = list(np.random.default_rng(0).permutation(PATIENTS))
    assert {PATIENTS[i] for i in split["dev"]} == {mixed[i] for i in split_by_patient(mixed, shares, 3)["dev"]}


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.6, "b": 0.6}, {"a": 1.0, "b": 0.0}])
def test_shares_that_are_none(shares):
    with pytest.raises(DataError, match="give each split a positive share, together 1"):
        split_by_patient(PATIENTS, shares, 0)


def test_a_split_that_would_stay_empty():
    with pytest.raises(DataError, match=r"split 'dev': 1\.0% of 20 patients is none; raise its share"):
        split_by_patient(PATIENTS, {"train": 0.99, "dev": 0.01}, 0)


def test_labelled_subsets_are_nested():
    subsets = [set(first_patients(PATIENTS, count, 1)) for count in (1, 2, 5, 20)]
    assert [len(subset) for subset in subsets] == [3, 6, 15, 60]
    assert all(small < large for small, large in pairwise(subsets))
    assert first_patients(PATIENTS, 5, 1) != first_patients(PATIENTS, 5, 2)
    for count in (0, 21):
        with pytest.raises(DataError, match=f"{count} patients: give a number from 1 to 20"):
            first_patients(PATIENTS, count, 1)


def test_a_patient_in_two_splits_is_named():
    check_patients_apart({"train": ["a", "a", "b"], "dev": ["c"]})
    with pytest.raises(DataError, match="patient 'b': in the splits 'train' and 'dev'; keep all cases in one"):
        check_patients_apart({"train": ["a", "b"], "dev": ["b", "c"]})


def test_parts_are_written_and_read(tmp_path):
    write_splits(tmp_path / "new", {"labelled": ("b", "a"), "dev": ["c"], "test": ()})
    file = tmp_path / "new" / "splits.json"
    assert read_split_part(file, "labelled") == ("b", "a") and read_split_part(file, "dev") == ("c",)
    for part in ("test", "Ts"):
        with pytest.raises(DataError, match=rf"no cases in the part '{part}'; there: labelled \(2\), dev \(1\)$"):
            read_split_part(file, part)
    with pytest.raises(DataError, match=r"nowhere\.json: no such file"):
        read_split_part(tmp_path / "nowhere.json", "dev")
    with pytest.raises(StorageError, match="nothing was written"):
        write_splits(file / "below", {})


@pytest.mark.parametrize("content", ["[]", '{"dev": "a"}', '{"dev": [1]}'])
def test_what_is_no_file_of_parts(tmp_path, content):
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(DataError, match=r"expected lists of case names by part; give the splits\.json of recipes/med"):
        read_split_part(tmp_path / "splits.json", "dev")
