"""CHASE_DB1's names to folders, the bytes as they were; a file that is missing or broken leaves nothing behind."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

from popen.data.medical_audit import audit_medical
from popen.data.medical_sources import read_labelled_cases
from tests.data.medical_files import write_mask, write_picture

CONVERTER = Path(__file__).parents[2] / "data_tools" / "convert_chase_db1.py"
main = runpy.run_path(str(CONVERTER))["main"]


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "CHASE_DB1"
    for seed, name in enumerate(("Image_01L", "Image_01R")):
        write_picture(root / f"{name}.jpg", seed)
        write_mask(root / f"{name}_1stHO.png")
        write_mask(root / f"{name}_2ndHO.png", level=200)
    return root


def test_both_observers_are_laid_out_as_they_are_read(source, tmp_path, capsys):
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 2 pictures, two masks each\n"
    for folder, name in (
        ("images", "Image_01L.jpg"),
        ("masks", "Image_01L_1stHO.png"),
        ("masks_2", "Image_01L_2ndHO.png"),
    ):
        stem = name.split("_1st")[0].split("_2nd")[0].removesuffix(".jpg")
        copied = tmp_path / "out" / folder / f"{stem}{Path(name).suffix}"
        assert copied.read_bytes() == (source / name).read_bytes()
    cases, _ = read_labelled_cases(tmp_path / "out", ["vessel"], "sigmoid", r"Image_(\d+)", True)
    assert {case.patient for case in cases} == {"01"} and len(cases[0].load().further_masks) == 1
    assert audit_medical(tmp_path / "out").lines == ()


def test_what_cannot_be_used_leaves_nothing(source, tmp_path, capsys):
    out = tmp_path / "out"
    (source / "Image_01R_2ndHO.png").rename(tmp_path / "kept.png")
    assert main([str(source), str(out)]) == 1
    assert capsys.readouterr().err.strip().endswith("no Image_01R_2ndHO.png; add it or remove Image_01R")
    Image.new("L", (3, 3)).save(source / "Image_01R_2ndHO.png")
    assert main([str(source), str(out)]) == 1
    assert "3x3, its picture Image_01R.jpg is 12x10" in capsys.readouterr().err and not out.exists()
    out.mkdir()
    assert main([str(source), str(out)]) == 1
    assert "is there already; give a new folder" in capsys.readouterr().err
