"""`popen data check` on medical folders: a line for every fault with its file, what splits share, and the counts."""

import pytest

from popen import cli
from popen.data.medical_audit import audit_medical
from popen.data.medical_layout import is_medical
from popen.data.safe_io import DataError
from tests.data.medical_files import block, voxels, write_mask, write_picture, write_raw, write_volume

TWO = {"background": 0, "anterior": 1, "posterior": 2}


def pictures(root, names, first_seed=0, ending="png"):
    for seed, name in enumerate(names, first_seed):
        write_picture(root / "images" / f"{name}.png", seed)
        write_mask(root / "masks" / f"{name}.{ending}")
    return root


def test_layouts_are_told_by_their_folders(tmp_path):
    pictures(tmp_path / "pairs" / "train", "ab")
    (tmp_path / "other" / "images").mkdir(parents=True)
    assert is_medical(tmp_path / "pairs") and is_medical(tmp_path / "pairs" / "train")
    assert not is_medical(tmp_path / "other") and not is_medical(tmp_path / "nowhere")
    assert is_medical(write_raw(tmp_path / "raw", TWO, {"a": block(1)}))


def test_a_good_folder_has_no_fault(tmp_path):
    pictures(tmp_path / "train", "ab")
    pictures(tmp_path / "dev", "c", 5)
    audit = audit_medical(tmp_path)
    assert audit.lines == () and not audit.errors and not audit.warnings
    assert list(audit.counts) == ["dev", "train"]
    assert audit.counts["train"].lines("train") == [
        "train: 2 cases of 2 patients, 0 without labels",
        "  size             3 × 10 × 12",
        "  spacing in mm    1 × 1",
        "  foreground       in 2 cases, shares of the picture 5% 25.000%, 50% 25.000%, 95% 25.000%",  # 30 of 120
        "  empty masks      0",
    ]


def test_jpeg_masks_are_said_to_be_thresholded(tmp_path):
    audit = audit_medical(pictures(tmp_path / "set", "ab", ending="jpg"))
    assert not audit.errors and not audit.warnings
    assert audit.counts["set"].lines("set")[-1] == "  masks with grey  2, as JPEG makes it: above 127 is foreground"


def test_the_masks_of_further_annotators_are_checked(tmp_path):
    root = pictures(tmp_path / "set", "abc")
    for name in "abc":
        write_mask(root / "masks_2" / f"{name}.png")
    write_mask(root / "masks_2" / "a.png", level=200)
    audit = audit_medical(root)
    assert audit.lines == ()
    assert audit.counts["set"].lines("set")[-2] == (
        "  further masks    3, Dice with the first 5% 100.000%, 50% 100.000%, 95% 100.000%"
    )
    (root / "masks_2" / "a.png").unlink()
    write_mask(root / "masks_2" / "b.png", size=(10, 12))
    write_mask(root / "masks_2" / "c.png", empty=True)
    audit = audit_medical(root)
    assert audit.errors == {"no partner": 1, "size differs": 1} and audit.warnings == {"empty mask": 1}


def test_every_fault_of_a_folder_is_a_line(tmp_path):
    root = pictures(tmp_path / "set", "abcdef")
    (root / "masks" / "a.png").unlink()
    write_mask(root / "masks" / "b.png", size=(10, 12))
    (root / "images" / "c.png").write_bytes(b"broken")
    write_mask(root / "masks" / "d.png", empty=True)
    write_mask(root / "masks" / "e.png", level=1)
    audit = audit_medical(root)
    assert audit.errors == {"no partner": 1, "size differs": 1, "bad file": 2}
    assert audit.warnings == {"empty mask": 1}
    beginnings = [
        f"error: set: {root}/images/a.png: no a in masks",
        f"error: set: b: {root}/masks/b.png: 10x12, its picture b.png is 12x10",
        f"error: set: c: {root}/images/c.png: not a picture",
        f"warning: set: d: {root}/masks/d.png: no foreground",
        f"error: set: e: {root}/masks/e.png: holds 0 and 1",
    ]
    assert len(audit.lines) == len(beginnings)
    assert all(line.startswith(start) for line, start in zip(audit.lines, beginnings, strict=True))
    counts = audit.counts["set"]
    assert (counts.cases, counts.empty, len(counts.shapes)) == (5, 1, 2)


def test_every_fault_of_volumes_is_a_line(tmp_path):
    cases = {name: block(1, 2) for name in "abcde"}
    root = write_raw(tmp_path / "raw", TWO, cases)
    write_volume(root / "labelsTr" / "a.nii.gz", block(1, 2, 9))
    write_volume(root / "labelsTr" / "b.nii.gz", block(1, shape=(6, 5, 3)))
    values = voxels()
    values[0, 0, :2] = float("nan")
    write_volume(root / "imagesTr" / "c_0000.nii.gz", values)
    write_volume(root / "imagesTr" / "d_0000.nii.gz", voxels(shape=(6, 5, 4, 2)))
    write_volume(root / "labelsTr" / "e.nii.gz", block())
    audit = audit_medical(root)
    assert audit.errors == {"unknown labels": 1, "grid differs": 1, "bad file": 2, "all masks empty": 1}
    assert audit.warnings == {"empty mask": 1}
    text = "\n".join(audit.lines)
    for part in (
        f"Tr: a: {root}/labelsTr/a.nii.gz: label ids [9] beside the declared [0, 1, 2]; relabel or declare them",
        f"Tr: b: {root}/labelsTr/b.nii.gz: size 6 × 5 × 3, the picture's is 6 × 5 × 4",
        f"Tr: c: {root}/imagesTr/c_0000.nii.gz: 2 of 120 voxels are NaN or infinite",
        f"Tr: d: {root}/imagesTr/d_0000.nii.gz: 4-D (6 × 5 × 4 × 2) where one 3-D volume is expected",
        f"Tr: e: {root}/labelsTr/e.nii.gz: no foreground",
        "Tr: no case has any foreground; check the labels and their ids",
    ):
        assert part in text


def test_leakage_between_splits(tmp_path):
    """The same picture, and a patient told by the names; equal names alone are only worth a word."""
    pictures(tmp_path / "train", ["p1_a", "p1_b", "p2_a"])
    pictures(tmp_path / "test", ["p1_c", "p3_a"], 10)
    write_picture(tmp_path / "test" / "images" / "p3_a.png", 2)  # train's p2_a
    by_name = audit_medical(tmp_path, patient=r"(p\d+)_")
    assert by_name.errors == {"picture in two splits": 1, "patient in two splits": 1}
    text = "\n".join(by_name.lines)
    assert "train: p2_a: the same picture is p3_a in test; keep it in one split" in text
    assert "train: patient 'p1' also stands in test; keep all cases of a patient in one split" in text
    assert by_name.counts["train"].lines("train")[0] == "train: 3 cases of 2 patients, 0 without labels"
    assert not audit_medical(tmp_path, ["train"], r"(p\d+)_").errors
    pictures(tmp_path / "test", ["p1_a"], 20)
    blind = audit_medical(tmp_path)
    assert blind.errors == {"picture in two splits": 1} and blind.warnings == {"name in two splits": 1}
    assert (
        "train: 1 case names also stand in test (p1_a); where names tell patients, give --patient" in blind.lines[-1]
    )


def test_a_picture_twice_in_a_split_is_a_warning(tmp_path):
    root = pictures(tmp_path / "set", "ab")
    write_picture(root / "images" / "b.png", 0)
    audit = audit_medical(root)
    assert not audit.errors and audit.warnings == {"picture twice": 1}
    assert "set: b: the same picture is a; keep one" in audit.lines[0]


def test_volumes_without_a_description_tell_their_ids(tmp_path):
    write_volume(tmp_path / "set" / "images" / "a.nii.gz", voxels())
    write_volume(tmp_path / "set" / "labels" / "a.nii.gz", block(1, 4))
    audit = audit_medical(tmp_path / "set")
    lines = audit.counts["set"].lines("set")
    assert not audit.errors and lines[-1] == "  label ids        0: 1 cases, 1: 1 cases, 4: 1 cases"
    assert lines[2] == "  spacing in mm    1.5 × 2 × 3"


def test_the_parts_of_a_raw_folder_are_its_splits(tmp_path):
    root = write_raw(tmp_path / "raw", TWO, {"a": block(1, 2), "b": block(1)})
    write_volume(root / "imagesTs" / "t_0000.nii.gz", voxels())  # the picture of case a
    audit = audit_medical(root)
    assert audit.errors == {"picture in two splits": 1}
    assert audit.counts["Ts"].lines("Ts")[0] == "Ts: 1 cases of 1 patients, 1 without labels"
    table = audit.counts["Tr"].lines("Tr")
    assert table[3].startswith("  background       in 2 cases, ")
    assert table[5].startswith("  posterior        in 1 cases, shares of the picture 5% 5.000%")  # 6 of 120 voxels


def test_splits_that_cannot_be_checked(tmp_path):
    pictures(tmp_path / "train", "a")
    (tmp_path / "dev" / "images").mkdir(parents=True)
    (tmp_path / "dev" / "masks").mkdir()
    audit = audit_medical(tmp_path)
    assert audit.errors == {"split cannot be read": 1} and list(audit.counts) == ["train"]
    with pytest.raises(DataError, match="no split 'test'; there: dev, train"):
        audit_medical(tmp_path, ["test"])
    with pytest.raises(DataError, match="0 groups"):
        audit_medical(tmp_path, patient="p")


def test_the_command(tmp_path, capsys):
    root = pictures(tmp_path / "set", "ab")
    assert cli.main(["data", "check", str(root)]) == 0
    assert capsys.readouterr().out.endswith("  empty masks      0\n0 errors\n0 warnings\n")
    write_mask(root / "masks" / "b.png", size=(10, 12))
    assert cli.main(["data", "check", str(root), "--patient", "(.)"]) == 1
    output = capsys.readouterr().out
    assert output.startswith("error: set: b: ") and output.endswith("1 errors (size differs 1)\n0 warnings\n")
    assert cli.main(["data", "check", str(tmp_path / "set" / "images")]) == 1
    assert "no dataset.json and no images/ with masks/ or labels/" in capsys.readouterr().err
