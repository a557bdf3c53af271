"""One call for all layouts: folders with the regions that are given, others with those of their dataset.json."""

import pytest

from popen.data.label_regions import LabelRegions
from popen.data.medical_sources import read_labelled_cases
from popen.data.safe_io import DataError
from tests.data.medical_files import block, voxels, write_mask, write_picture, write_raw, write_volume


def test_pictures_with_and_without_further_annotators(tmp_path):
    write_picture(tmp_path / "images" / "a1.png")
    for folder in ("masks", "masks_2", "masks_3"):
        write_mask(tmp_path / folder / "a1.png")
    for annotators, count in ((False, 0), (True, 2)):
        (reference,), regions = read_labelled_cases(tmp_path, ["polyp"], "sigmoid", r"(.)\d", annotators)
        assert regions == LabelRegions(("polyp",), ((1,),), "sigmoid") and reference.patient == "a"
        assert len(reference.load().further_masks) == count


@pytest.mark.parametrize("masks", ["masks", "labels"])
@pytest.mark.parametrize("names", [["polyp"], ["background", "polyp"]])
def test_pictures_under_softmax_have_a_background(tmp_path, names, masks):
    write_picture(tmp_path / "images" / "a.png")
    write_mask(tmp_path / masks / "a.png")
    (reference,), regions = read_labelled_cases(tmp_path, names, "softmax", None, False)
    masks_KHW = reference.load().masks_KHW
    assert regions == LabelRegions(("background", "polyp"), ((0,), (1,)), "softmax")
    assert masks_KHW.sum((1, 2)).tolist() == [12 * 10 - 5 * 6, 5 * 6] and (masks_KHW.sum(0) == 1).all()


@pytest.mark.parametrize("masks", ["masks", "labels"])
def test_volumes_without_a_dataset_json(tmp_path, masks):
    """Ids 1 and 4, as `popen data check` reads them."""
    write_volume(tmp_path / "images" / "a.nii.gz", voxels())
    write_volume(tmp_path / masks / "a.nii.gz", block(1, 4, 4))
    (reference,), regions = read_labelled_cases(tmp_path, ["organ", "tumour"], "softmax", None, False, [1, 4])
    masks_KXYZ = reference.load().masks_KHW
    assert regions.names == ("background", "organ", "tumour") and regions.ids == ((0,), (1,), (4,))
    assert masks_KXYZ.reshape(3, -1).sum(1).tolist() == [6 * 5 * 4 - 18, 6, 12]  # slabs of 3 x 2 voxels
    (reference,), _ = read_labelled_cases(tmp_path, ["organ", "tumour"], "softmax", None, False)
    with pytest.raises(DataError, match=r"label ids \[4\] beside the declared \[0, 1, 2\]; relabel or declare them"):
        reference.load()
    with pytest.raises(DataError, match="further annotators are read of pictures, and these are volumes; leave them"):
        read_labelled_cases(tmp_path, ["organ"], "sigmoid", None, annotators=True)


def test_pictures_have_one_region(tmp_path):
    write_picture(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png")
    for names, activation in ((["a", "b"], "sigmoid"), (["background", "a", "b"], "softmax")):
        with pytest.raises(DataError, match=r"pictures have one mask each, and the regions are .*a, b; name one, or"):
            read_labelled_cases(tmp_path, names, activation, None, False)


def test_a_raw_folder_has_regions_of_its_own_that_may_overlap(tmp_path):
    """As BraTS has them: four modalities, and each region in the one before it."""
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    root = write_raw(tmp_path / "raw", labels, {"a": block(1, 2, 3)}, ("T1", "T1ce", "T2", "Flair"))
    (reference,), regions = read_labelled_cases(root, ["other"], "sigmoid", None, False)
    case = reference.load()
    assert (
        regions.names == ("whole", "core", "enhancing")
        and regions.ids == ((1, 2, 3), (2, 3), (3,))
        and case.image_CHW.shape[0] == 4
    )
    assert case.masks_KHW.reshape(3, -1).sum(1).tolist() == [18, 12, 6]  # slabs of 3 x 2 voxels
