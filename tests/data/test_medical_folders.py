"""Pairs of picture and mask by name, masks in grey and in colour, and everything a folder can get wrong."""

import numpy as np
import pytest
from PIL import Image

from popen.data.medical_folders import (
    further_annotators,
    list_image_folder,
    picture_array,
    read_image_folder,
    read_mask,
)
from popen.data.safe_io import DataError
from tests.data.medical_files import write_mask, write_picture


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("b", "a")):
        write_picture(tmp_path / "images" / f"{name}.png", seed)
        write_mask(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def test_pairs_are_listed_and_read_on_demand(folder):
    cases = read_image_folder(folder)
    assert [(case.case_id, case.patient) for case in cases] == [("a", "a"), ("b", "b")]
    case = cases[0].load()
    with Image.open(folder / "images" / "a.png") as image:
        assert (case.image_CHW == np.asarray(image).transpose(2, 0, 1)).all()
    assert case.image_CHW.dtype == np.float32 and case.spacing == (1, 1) and case.affine is None
    assert case.masks_KHW.shape == (1, 10, 12) and case.masks_KHW.sum() == 5 * 6 and case.masks_KHW[0, 2, 3]


def test_grey_is_luminance(folder):
    grey = read_image_folder(folder, channels=1)[0].load().image_CHW
    with Image.open(folder / "images" / "a.png") as image:
        assert (grey[0] == np.asarray(image.convert("L"))).all()
    with pytest.raises(DataError, match="3 channels, or 1 in grey, and 4 are wanted"):
        picture_array(folder / "images" / "a.png", 4)


def test_two_annotators_beside_the_pictures(tmp_path):
    for name in ("01L", "01R"):
        write_picture(tmp_path / f"{name}.jpg")
        write_mask(tmp_path / f"{name}_1st.png")
    write_mask(tmp_path / "01L_2nd.png")
    first, second = (read_image_folder(tmp_path, ".", ".", suffix, r"(\d+)[LR]") for suffix in ("_1st", "_2nd"))
    assert [case.case_id for case in first] == ["01L", "01R"] and {case.patient for case in first} == {"01"}
    assert [case.mask.name for case in second] == ["01L_2nd.png"]
    with pytest.raises(DataError, match="pictures and masks in one folder; give the suffix that masks have"):
        read_image_folder(tmp_path, ".", ".")


def test_a_pool_without_labels(folder):
    cases = read_image_folder(folder, masks=None)
    assert [case.mask for case in cases] == [None, None] and cases[0].load().masks_KHW is None


def test_a_jpeg_mask_is_what_lies_above_127_and_its_grey_is_counted(tmp_path):
    truth = np.zeros((40, 40), bool)
    truth[9:31, 11:29] = True
    Image.fromarray(truth.astype(np.uint8) * 255).save(tmp_path / "m.jpg", quality=60)
    with Image.open(tmp_path / "m.jpg") as image:
        levels = np.asarray(image)
    mask, grey = read_mask(tmp_path / "m.jpg")
    assert (mask == truth).all()
    assert grey == ((levels > 0) & (levels < 255)).sum() > 50
    edge = np.array([[126, 127, 128, 129]] * 2, np.uint8)
    Image.fromarray(edge).save(tmp_path / "edge.png")
    assert read_mask(tmp_path / "edge.png")[0].tolist() == [[False, False, True, True]] * 2


def test_masks_of_one_bit_and_black_masks(tmp_path):
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "bit.png")
    assert (read_mask(tmp_path / "bit.png")[0] == np.eye(4)).all()
    mask, grey = read_mask(write_mask(tmp_path / "black.png", empty=True))
    assert not mask.any() and grey == 0


def test_masks_that_would_be_misread(tmp_path):
    with pytest.raises(DataError, match=r"ones\.png: holds 0 and 1, and only above 127 is foreground; save it as 0"):
        read_mask(write_mask(tmp_path / "ones.png", level=1))
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[1, :3, 0] = 200
    Image.fromarray(colour).save(tmp_path / "red.png")
    with pytest.raises(DataError, match=r"red\.png: a mask in colour \(3 pixels\); save each region in black"):
        read_mask(tmp_path / "red.png")


def test_a_mask_of_another_size(folder):
    write_mask(folder / "masks" / "a.png", size=(10, 12))
    with pytest.raises(DataError, match=r"masks/a\.png: 10x12, its picture a\.png is 12x10; export the pair again"):
        read_image_folder(folder)[0].load()


def test_all_faults_of_a_case_are_gathered(folder):
    (folder / "images" / "a.png").write_bytes(b"no picture")
    write_mask(folder / "masks" / "a.png", level=1)
    examined = read_image_folder(folder)[0].examine()
    assert examined.case is None
    assert [fault.sort for fault in examined.faults] == ["bad file", "bad file"]
    assert "not a picture" in examined.faults[0].what and "holds 0 and 1" in examined.faults[1].what


def test_an_empty_mask_is_a_warning(folder):
    write_mask(folder / "masks" / "a.png", empty=True)
    examined = read_image_folder(folder)[0].examine()
    (fault,) = examined.faults
    assert not examined.case.masks_KHW.any() and not fault.is_error
    assert fault.what.startswith(f"{folder / 'masks' / 'a.png'}: no foreground")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda root: (root / "masks" / "a.png").unlink(), "images/a.png: no a in masks; add it or remove the file"),
        (lambda root: (root / "images" / "a.png").unlink(), "masks/a.png: no a in images"),
        (lambda root: write_picture(root / "images" / "a.jpg"), "a.jpg and a.png have one name"),
    ],
)
def test_files_without_their_partner(folder, change, message):
    change(folder)
    with pytest.raises(DataError) as caught:
        read_image_folder(folder)
    assert message in str(caught.value)
    assert len(list_image_folder(folder).faults) == 1 and list_image_folder(folder).references


def test_folders_that_hold_nothing(tmp_path, folder):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_image_folder(folder, images="nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none: no pictures \(\.png, \.jpg"):
        read_image_folder(folder, images="none", masks=None)


@pytest.fixture
def drawn_twice(folder):
    for name in "ab":
        write_mask(folder / "masks_2" / f"{name}.png", empty=name == "b")
    return folder


def test_what_further_annotators_drew_comes_along_when_asked_for(drawn_twice):
    assert further_annotators(drawn_twice) == ("masks_2",)
    first, second = read_image_folder(drawn_twice, further=further_annotators(drawn_twice))
    assert (first.load().further_masks[0] == first.load().masks_KHW).all()
    assert not second.load().further_masks[0].any() and second.load().masks_KHW.any()
    assert [fault.sort for fault in second.examine().faults] == ["empty mask"]
    assert read_image_folder(drawn_twice)[0].load().further_masks == ()


def test_further_annotators_are_numbered_and_whole(drawn_twice):
    (drawn_twice / "masks_2" / "a.png").rename(drawn_twice / "masks_2" / "c.png")
    with pytest.raises(DataError, match=r"images/a\.png: no a in masks_2; add it or remove the file"):
        read_image_folder(drawn_twice, further=("masks_2",))
    write_mask(drawn_twice / "masks_2" / "a.png", size=(10, 12))
    (drawn_twice / "masks_2" / "c.png").unlink()
    with pytest.raises(DataError, match=r"masks_2/a\.png: 10x12, its picture a\.png is 12x10; export the pair again"):
        read_image_folder(drawn_twice, further=("masks_2",))[0].load()
    (drawn_twice / "masks_2").rename(drawn_twice / "masks_3")
    with pytest.raises(DataError, match="masks_3 and no masks_2; number further annotators from 2 on"):
        further_annotators(drawn_twice)
