"""Raw folders of nnU-Net and the decathlon: channels, regions, and one line for what does not fit."""

import json

import numpy as np
import pytest
from PIL import Image

from popen.data.label_map_case import read_volume_folder
from popen.data.label_regions import read_regions
from popen.data.nnunet_raw import read_dataset_json, read_msd, read_nnunet_raw
from popen.data.safe_io import DataError
from tests.data.medical_files import AFFINE, block, voxels, write_raw, write_volume

TWO = {"background": 0, "anterior": 1, "posterior": 2}
BRATS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": 3}


def rewrite(root, **changed):
    content = json.loads((root / "dataset.json").read_text()) | changed
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return root


def test_channels_and_classes(tmp_path):
    root = write_raw(tmp_path, TWO, {"p1_a": block(1, 2), "p1_b": block(1), "p2_a": block(2)}, ("T1", "T2"))
    cases = read_nnunet_raw(root, patient=r"(p\d+)_")
    assert [(case.case_id, case.patient) for case in cases] == [("p1_a", "p1"), ("p1_b", "p1"), ("p2_a", "p2")]
    case = cases[0].load()
    assert (case.image_CHW == np.stack([voxels(0), voxels(1)])).all()
    assert case.spacing == (1.5, 2, 3) and (case.affine == AFFINE).all()
    assert (case.masks_KHW.sum(0) == 1).all() and (case.masks_KHW[2] == (block(1, 2) == 2)).all()
    assert read_dataset_json(root).channels == ("T1", "T2")


def test_regions_that_share_ids(tmp_path):
    root = write_raw(tmp_path, BRATS, {"a": block(1, 2, 3)})
    case = read_nnunet_raw(root)[0].load()
    assert case.masks_KHW.reshape(3, -1).sum(1).tolist() == [18, 12, 6]  # slabs of 6 voxels
    with pytest.raises(DataError, match="regions share ids"):
        read_nnunet_raw(root, activation="softmax")


def test_test_cases_have_labels_only_where_there_are_some(tmp_path):
    root = write_raw(tmp_path, TWO, {"a": block(1)})
    write_volume(root / "imagesTs" / "t_0000.nii.gz", voxels(9))
    (case,) = read_nnunet_raw(root, "Ts")
    assert case.load().masks_KHW is None
    write_volume(root / "labelsTs" / "t.nii.gz", block(2))
    (case,) = read_nnunet_raw(root, "Ts")
    assert case.load().masks_KHW[2].any()
    with pytest.raises(DataError, match="part 'val': give one of Tr, Ts"):
        read_nnunet_raw(root, "val")


def test_pictures_in_png_keep_their_numbers(tmp_path):
    root = write_raw(tmp_path, TWO, {}, numTraining=1, file_ending=".png")
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(picture).save(root / "imagesTr" / "a_0000.png")
    Image.fromarray(np.eye(8, 9, dtype=np.uint8) * 2).save(root / "labelsTr" / "a.png")
    case = read_nnunet_raw(root)[0].load()
    assert (case.image_CHW == picture.transpose(2, 0, 1)).all() and case.affine is None
    assert (case.masks_KHW[2] == np.eye(8, 9)).all()
    Image.fromarray(np.eye(9, 8, dtype=np.uint8)).save(root / "labelsTr" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: size \(9, 8\), the picture's is \(8, 9\)"):
        read_nnunet_raw(root)[0].load()
    Image.fromarray(picture).save(root / "labelsTr" / "a.png")
    with pytest.raises(DataError, match="labels in colour; save ids as 8-bit grey"):
        read_nnunet_raw(root)[0].load()


def decathlon(root, channels=1, **changed):
    shape = (6, 5, 4) if channels == 1 else (6, 5, 4, channels)
    write_volume(root / "imagesTr" / "a.nii.gz", voxels(0, shape))
    write_volume(root / "labelsTr" / "a.nii.gz", block(1, 2))
    write_volume(root / "imagesTs" / "t.nii.gz", voxels(1, shape))
    content = {
        "modality": {str(k): "MR" for k in range(channels)},
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/t.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content | changed))
    return root


@pytest.mark.parametrize("channels", [1, 3])
def test_the_decathlon_lists_its_files(tmp_path, channels):
    root = decathlon(tmp_path, channels)
    (case,), (test,) = read_msd(root), read_msd(root, "Ts")
    assert case.case_id == "a" and case.load().image_CHW.shape == (channels, 6, 5, 4)
    assert case.load().masks_KHW.shape == (3, 6, 5, 4) and test.load().masks_KHW is None


def test_each_reader_reads_its_own(tmp_path):
    with pytest.raises(DataError, match="of the decathlon, without channel_names; use read_msd"):
        read_nnunet_raw(decathlon(tmp_path / "msd"))
    with pytest.raises(DataError, match="of nnU-Net, with channel_names; use read_nnunet_raw"):
        read_msd(write_raw(tmp_path / "raw", TWO, {"a": block(1)}))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"training": []}, "'training' must be a list of files, not empty"),
        ({"training": ["a.nii.gz"]}, "training 0: expected an image and its label"),
        ({"training": [{"image": "a.nii.gz"}]}, "training 0: expected an image and its label"),
        ({"training": [None]}, "training 0: expected an image and its label"),
        ({"training": [{"image": "../a.nii.gz", "label": "b.nii.gz"}]}, "without '..', backslash or NUL"),
        ({"training": [{"image": "/a.nii.gz", "label": "b.nii.gz"}]}, "must be relative"),
        ({"training": [{"image": "imagesTr/a.nii.gz", "label": "l"}] * 2}, "training 1: a is listed twice"),
        ({"modality": {"1": "MR"}}, "'modality' must be an object with the keys 0, 1"),
        ({"modality": None}, "'modality' must be an object"),
        ({"labels": []}, "'labels' must be an object"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, changed, message):
    with pytest.raises(DataError) as caught:
        read_msd(decathlon(tmp_path, **changed))
    assert message in str(caught.value)


def test_a_test_row_is_one_name(tmp_path):
    with pytest.raises(DataError, match="test 0: expected a file"):
        read_msd(decathlon(tmp_path, test=[{"image": "a", "label": "b"}]), "Ts")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda root: (root / "dataset.json").write_text("[]"), "expected an object"),
        (lambda root: (root / "dataset.json").write_text("{"), "not JSON"),
        (lambda root: rewrite(root, channel_names={}), "'channel_names' must be an object"),
        (lambda root: rewrite(root, file_ending=".mha"), "file_ending '.mha'; .nii.gz, .nii, .png can be read"),
        (lambda root: rewrite(root, numTraining=3), "numTraining is 3, imagesTr has 2"),
        (lambda root: rewrite(root, channel_names={"0": "a", "1": "b"}), "a has the channels [0], dataset.json"),
        (lambda root: (root / "labelsTr" / "a.nii.gz").unlink(), "a_0000.nii.gz: no a.nii.gz in labelsTr"),
        (lambda root: (root / "imagesTr" / "a_0000.nii.gz").unlink(), "labelsTr/a.nii.gz: no a_0000 in imagesTr"),
        (lambda root: write_volume(root / "imagesTr" / "x.nii.gz", voxels()), "call it x_0000.nii.gz"),
        (lambda root: [f.unlink() for f in (root / "imagesTr").iterdir()], "no pictures (*_0000.nii.gz)"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, change, message):
    root = write_raw(tmp_path, TWO, {"a": block(1), "b": block(2)})
    change(root)
    with pytest.raises(DataError) as caught:
        read_nnunet_raw(root)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def moved():
    affine = AFFINE.copy()
    affine[1, 3] += 2
    return affine


@pytest.mark.parametrize(
    "name, values, affine, sort, message",
    [
        (
            "labelsTr/a",
            block(1, shape=(6, 5, 3)),
            AFFINE,
            "grid differs",
            "size 6 × 5 × 3, the picture's is 6 × 5 × 4",
        ),
        ("labelsTr/a", block(1), moved(), "grid differs", "affine 2 mm off the picture's (a_0000.nii.gz)"),
        ("imagesTr/a_0001", voxels(), moved(), "grid differs", "affine 2 mm off"),
        ("labelsTr/a", block(1, 7, 5), AFFINE, "unknown labels", "label ids [5, 7] beside the declared [0, 1, 2]"),
        ("labelsTr/a", block(1) * 0.5, AFFINE, "bad file", "no whole label ids"),
        ("imagesTr/a_0000", voxels() * np.nan, AFFINE, "bad file", "120 of 120 voxels are NaN or infinite"),
        ("imagesTr/a_0001", voxels(shape=(6, 5, 4, 2)), AFFINE, "bad file", "4-D (6 × 5 × 4 × 2)"),
    ],
)
def test_cases_that_cannot_be_used(tmp_path, name, values, affine, sort, message):
    root = write_raw(tmp_path, TWO, {"a": block(1)}, ("T1", "T2"))
    path = write_volume(root / f"{name}.nii.gz", values, affine)
    (case,) = read_nnunet_raw(root)
    with pytest.raises(DataError) as caught:
        case.load()
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert [fault.sort for fault in case.examine().faults] == [sort]


def test_a_folder_of_volumes_without_a_description(tmp_path):
    for name in ("a", "b"):
        write_volume(tmp_path / "images" / f"{name}.nii.gz", voxels())
        write_volume(tmp_path / "labels" / f"{name}.nii.gz", block(1, 2))
    regions = read_regions(TWO, "x")
    cases = read_volume_folder(tmp_path, regions)
    assert [case.case_id for case in cases] == ["a", "b"]
    assert (cases[0].load().masks_KHW == regions.masks(block(1, 2))).all()
    assert read_volume_folder(tmp_path, regions, labels=None)[0].load().masks_KHW is None
