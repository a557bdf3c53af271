"""Pictures and volumes that nobody labelled, in every layout, with the channels of the labelled ones."""

import json

import numpy as np
import pytest

from popen.data.safe_io import DataError
from popen.data.unlabelled_pool import read_unlabelled_cases
from tests.data.medical_files import block, voxels, write_mask, write_picture, write_raw, write_volume


@pytest.mark.parametrize("inner", ["images", "."])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_pictures(tmp_path, inner, channels):
    """Masks beside them are not looked at."""
    write_picture(tmp_path / inner / "a1.jpg")
    write_picture(tmp_path / inner / "b1.png")
    write_mask(tmp_path / "masks" / "a1.png")
    cases = read_unlabelled_cases(tmp_path, channels, r"(.)\d")
    assert [(own.case_id, own.patient) for own in cases] == [("a1", "a"), ("b1", "b")]
    assert cases[0].load().image_CHW.shape == (channels, 10, 12) and cases[0].load().masks_KHW is None


def test_frames_with_numbers_are_pictures_and_no_channels(tmp_path):
    for number in range(4):
        write_picture(tmp_path / f"frame_{number:04d}.png")
    assert [own.case_id for own in read_unlabelled_cases(tmp_path, 3)] == [f"frame_{k:04d}" for k in range(4)]


@pytest.mark.parametrize("inner", ["images", "."])
def test_a_folder_of_volumes(tmp_path, inner):
    write_volume(tmp_path / inner / "a.nii.gz", voxels())
    (case,) = read_unlabelled_cases(tmp_path, 1)
    assert case.load().image_CHW.shape == (1, 6, 5, 4) and case.load().masks_KHW is None
    (case,) = read_unlabelled_cases(tmp_path, 2)
    with pytest.raises(DataError, match=r"a\.nii\.gz: 3-D .* where a 4-D file of 2 channels is expected"):
        case.load()


def test_volumes_of_a_file_for_all_channels(tmp_path):
    write_volume(tmp_path / "a.nii", np.stack([voxels(0), voxels(1)], -1))
    assert read_unlabelled_cases(tmp_path, 2)[0].load().image_CHW.shape == (2, 6, 5, 4)


def test_a_file_for_each_channel_as_in_images_ts(tmp_path):
    for channel in range(2):
        write_volume(tmp_path / f"a_{channel:04d}.nii.gz", voxels(channel))
    (case,) = read_unlabelled_cases(tmp_path, 2)
    assert case.case_id == "a" and case.load().image_CHW.shape == (2, 6, 5, 4)
    for channels in (1, 3):
        with pytest.raises(DataError, match=rf"a has the channels \[0, 1\], and the labelled cases have {channels}"):
            read_unlabelled_cases(tmp_path, channels)
    write_volume(tmp_path / "b.nii.gz", voxels())
    with pytest.raises(DataError, match=r"b\.nii\.gz: no channel at the end of the name, as others have it; call"):
        read_unlabelled_cases(tmp_path, 2)


def test_the_test_part_of_nnunet_raw_loses_its_labels(tmp_path):
    root = write_raw(tmp_path, {"background": 0, "a": 1}, {"t": block(1)})
    (root / "imagesTr").rename(root / "imagesTs")
    (root / "labelsTr").rename(root / "labelsTs")
    (case,) = read_unlabelled_cases(root, 1)
    assert case.case_id == "t" and case.load().masks_KHW is None
    with pytest.raises(DataError, match=r"dataset\.json: MR, and the labelled cases have 4 channels; give a pool of"):
        read_unlabelled_cases(root, 4)


def test_the_test_part_of_the_decathlon(tmp_path):
    write_volume(tmp_path / "imagesTs" / "t.nii.gz", voxels())
    described = {"modality": {"0": "MR"}, "labels": {"0": "background", "1": "a"}, "test": ["./imagesTs/t.nii.gz"]}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    (case,) = read_unlabelled_cases(tmp_path, 1)
    assert case.case_id == "t" and case.load().masks_KHW is None


def test_folders_that_are_no_pool(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_unlabelled_cases(tmp_path / "nowhere", 3)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"images: no pictures \(\.nii\.gz, .*\) for the pool; check the folder"):
        read_unlabelled_cases(tmp_path, 3)
    for ending in ("png", "jpg"):
        write_picture(tmp_path / "images" / f"a.{ending}")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png have one name; remove or rename one"):
        read_unlabelled_cases(tmp_path, 3)
