"""One call for both layouts: pictures with the regions that are given, volumes with those of their dataset.json."""

from popen.data.medical_sources import read_labelled_cases
from tests.data.medical_files import block, write_mask, write_picture, write_raw


def test_pictures_with_and_without_further_annotators(tmp_path):
    write_picture(tmp_path / "images" / "a1.png")
    for folder in ("masks", "masks_2", "masks_3"):
        write_mask(tmp_path / folder / "a1.png")
    for annotators, count in ((False, 0), (True, 2)):
        (reference,), regions = read_labelled_cases(tmp_path, ["polyp"], "sigmoid", r"(.)\d", annotators)
        assert regions == ("polyp",) and reference.patient == "a" and len(reference.load().further_masks) == count


def test_a_raw_folder_has_regions_of_its_own_that_may_overlap(tmp_path):
    """As BraTS has them: four modalities, and each region in the one before it."""
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    root = write_raw(tmp_path / "raw", labels, {"a": block(1, 2, 3)}, ("T1", "T1ce", "T2", "Flair"))
    (reference,), regions = read_labelled_cases(root, ["other"], "sigmoid", None, False)
    case = reference.load()
    assert regions == ("whole", "core", "enhancing") and case.image_CHW.shape[0] == 4
    assert case.masks_KHW.reshape(3, -1).sum(1).tolist() == [18, 12, 6]  # slabs of 3 x 2 voxels
