"""A case whose parts do not fit together is refused; the patient of a case is told by its name."""

import os

import numpy as np
import pytest

from popen.data.medical_case import Case, listed_files, patient_names
from popen.data.safe_io import DataError


def case(image=(3, 4, 5), masks=(1, 4, 5), spacing=(1.0, 1.0), dtype=np.float32, mask_dtype=np.bool_):
    return Case("c", "p", np.zeros(image, dtype), None if masks is None else np.zeros(masks, mask_dtype), spacing)


def test_parts_that_fit():
    assert case().masks_KHW.shape == (1, 4, 5)
    assert case(masks=None).masks_KHW is None
    assert case((1, 4, 5, 6), (2, 4, 5, 6), (1.0, 2.0, 3.0)).image_CHW.ndim == 4


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"dtype": np.float64}, r"c: the picture is float64 \(3, 4, 5\); give float32"),
        ({"image": (4, 5)}, r"c: the picture is float32 \(4, 5\)"),
        ({"masks": (1, 5, 4)}, r"masks are bool \(1, 5, 4\); give bool .* on the picture's grid \(4, 5\)"),
        ({"mask_dtype": np.uint8}, "masks are uint8"),
        ({"spacing": (1.0,)}, r"spacing \(1.0,\); give a positive number for each spatial axis"),
        ({"spacing": (1.0, 0.0)}, "spacing"),
        ({"spacing": (1.0, float("nan"))}, "spacing"),
    ],
)
def test_parts_that_do_not_fit(changed, message):
    with pytest.raises(DataError, match=message):
        case(**changed)


def test_further_annotators_draw_on_the_grid_of_the_first():
    image, first = np.zeros((3, 4, 5), np.float32), np.zeros((1, 4, 5), bool)
    assert Case("c", "p", image, first, (1.0, 1.0), further_masks=(first, first)).further_masks[1] is first
    for masks, further in ((first, np.zeros((2, 4, 5), bool)), (first, first.astype(np.uint8)), (None, first)):
        with pytest.raises(
            DataError, match=r"c: a further annotator's masks are .*; give bool of the first one's shape"
        ):
            Case("c", "p", image, masks, (1.0, 1.0), further_masks=(further,))


def test_patients_by_name():
    assert patient_names(None)("Image_01L") == "Image_01L"
    of = patient_names(r"Image_(\d+)[LR]")
    assert of("Image_01L") == of("Image_01R") == "01"
    with pytest.raises(DataError, match=r"scan: the patient pattern .* finds no patient in the name"):
        of("scan")


@pytest.mark.parametrize(
    "pattern, message", [("(", "regular expression"), (r"\d+", "0 groups"), ("(a)(b)", "2 groups")]
)
def test_patterns_that_are_none(pattern, message):
    with pytest.raises(DataError, match=message):
        patient_names(pattern)


def test_files_by_stem(tmp_path):
    for name in ("b.nii.gz", "a.nii", "A.PNG", ".hidden.nii", "notes.txt"):
        (tmp_path / name).touch()
    found = listed_files(tmp_path, (".nii.gz", ".nii", ".png"))
    assert {stem: [file.name for file in files] for stem, files in found.items()} == {
        "A": ["A.PNG"], "a": ["a.nii"], "b": ["b.nii.gz"],
    }  # fmt: skip
    with pytest.raises(DataError, match="no such folder"):
        listed_files(tmp_path / "nowhere", (".nii",))
    os.symlink("/etc/hostname", tmp_path / "link.nii")
    with pytest.raises(DataError, match=r"link\.nii: a link leads out of"):
        listed_files(tmp_path, (".nii",))
