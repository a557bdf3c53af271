"""A file in, labels on its own grid out: what is bright in a scan is marked where it lies, however it is turned."""

import json
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from popen.cli import main
from popen.data.safe_io import DataError
from popen.medical.segment_file import output_path, segment_case, segment_file
from popen.medical.segmenter_folder import is_segmenter_folder
from popen.medical.transforms import Preprocessing
from tests.medical.stand_in import StandIn

LPS = np.diag([-1.0, -1, 2, 1])
RANGE_3D = Preprocessing((8, 8, 8), (1.0, 1.0, 1.0), "range")


def scan(path, affine=LPS, shape=(12, 10, 7), bright=(slice(2, 8), slice(1, 5), slice(3, 5))):
    """A volume of 0 with a block of 100; returns the block."""
    values = np.zeros(shape, np.int16)
    values[bright] = 100
    nib.Nifti1Image(values, affine).to_filename(path)
    return values == 100


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder that says it holds a segmenter, and a small one that stands in for what is loaded from there."""

    def make(step, **changed):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "popen-segmenter"}))
        if step is not None:
            step.save_pretrained(folder)
        loaded = SimpleNamespace(Segmenter=SimpleNamespace(from_pretrained=lambda _: StandIn(**changed)))
        monkeypatch.setitem(sys.modules, "popen.medical.segmenter", loaded)
        return folder

    return make


def run(capsys, *argv):
    capsys.readouterr()
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


def test_a_scan_becomes_labels_on_its_grid(tmp_path, capsys, model):
    bright = scan(tmp_path / "scan.nii.gz")
    code, out, err = run(capsys, "segment", tmp_path / "scan.nii.gz", "--model", model(RANGE_3D, dims=3))
    beside = tmp_path / "scan-popen.nii.gz"
    assert code == 0, err
    assert out.splitlines() == ["  bright: 5.71% of the picture, 0.10 ml", f"wrote {beside}"]  # 48 of 840, 2 mm³ each
    labels, source = nib.load(beside), nib.load(tmp_path / "scan.nii.gz")
    assert (np.asarray(labels.dataobj) == bright).all()
    assert (labels.affine == source.affine).all() and labels.shape == source.shape


def test_classes_are_numbered_by_channel(tmp_path):
    values = np.zeros((8, 8, 8), np.float32)
    values[2:4], values[4:6] = 0.5, 1
    nib.Nifti1Image(values, LPS).to_filename(tmp_path / "scan.nii")

    class ByLevel(StandIn):
        def forward(self, pictures):
            return -100 * (pictures - self.levels.view(1, -1, 1, 1, 1)) ** 2

    names = ("background", "half", "whole")
    network = ByLevel(3, regions=names, activation="softmax", levels=(0.0, 0.5, 1.0)).eval()
    segmented = segment_file(tmp_path / "scan.nii", network, Preprocessing((8, 8, 8), scale="range"))
    assert [line.split(":")[0].strip() for line in segmented.lines()] == ["half", "whole"]
    segmented.write_labels(tmp_path / "out.nii")
    assert (np.asarray(nib.load(tmp_path / "out.nii").dataobj) == values * 2).all()


def test_labels_have_the_ids_of_the_data_set(tmp_path):
    """BraTS: a tumour of the ids 1, 2 and 4, of which 1 and 4 are its core."""
    values = np.zeros((8, 8, 8), np.float32)
    values[2:4], values[4:6] = 0.5, 1
    nib.Nifti1Image(values, LPS).to_filename(tmp_path / "scan.nii")
    ids = {"regions": ("tumour", "core"), "levels": (0.25, 0.75), "label_ids": ((1, 2, 4), (1, 4))}
    segmented = segment_file(tmp_path / "scan.nii", StandIn(3, **ids).eval(), Preprocessing((8, 8, 8), scale="range"))
    segmented.write_labels(tmp_path / "out.nii")
    written = np.asarray(nib.load(tmp_path / "out.nii").dataobj)
    assert (written[values == 0.5] == 2).all() and (written[values == 1] == 1).all() and not written[values == 0].any()


def test_flips_are_cut_at_their_own_threshold(tmp_path):
    scan(tmp_path / "scan.nii")
    network = StandIn(3, flips_threshold=100.0).eval()
    case = segment_file(tmp_path / "scan.nii", network, RANGE_3D).case
    assert segment_case(network, RANGE_3D, case).any() and not segment_case(network, RANGE_3D, case, flips=(0,)).any()


def test_channels_come_from_files_beside_one_another_or_from_one(tmp_path):
    bright = scan(tmp_path / "a_0000.nii.gz")
    scan(tmp_path / "a_0001.nii.gz", bright=(slice(0, 1),) * 3)
    values = np.stack([np.asarray(nib.load(tmp_path / f"a_000{k}.nii.gz").dataobj) for k in (0, 1)], axis=-1)
    nib.Nifti1Image(values, LPS).to_filename(tmp_path / "both.nii.gz")
    network = StandIn(3, channels=2).eval()
    step = Preprocessing((8, 8, 8), scale="range")
    for name in ("a_0000.nii.gz", "both.nii.gz"):
        segmented = segment_file(tmp_path / name, network, step)
        assert segmented.case.image_CHW.shape[0] == 2
        segmented.write_labels(tmp_path / "out.nii.gz")
        assert (np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj) == bright).all()
    scan(tmp_path / "a_0001.nii.gz", affine=np.diag([-1.0, -1, 3, 1]))
    with pytest.raises(DataError, match=r"a_0001\.nii\.gz: spacing 1 × 1 × 3 mm, .*; bring them onto one grid"):
        segment_file(tmp_path / "a_0000.nii.gz", network, step)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_becomes_an_overlay(tmp_path, capsys, model, channels):
    levels = np.zeros((20, 30, 3), np.uint8)
    levels[5:15, 10:20] = 255
    Image.fromarray(levels).save(tmp_path / "in.png")
    folder = model(Preprocessing((16, 16), None, "8-bit", "resize"), channels=channels)
    code, out, err = run(capsys, "segment", tmp_path / "in.png", "--model", folder)
    assert code == 0, err
    assert out.startswith("  bright: ") and " ml" not in out and out.endswith(f"wrote {tmp_path / 'in-popen.png'}\n")
    with Image.open(tmp_path / "in-popen.png") as drawn:
        changed = (np.asarray(drawn) != levels).any(2)
    assert changed.shape == (20, 30) and changed[10, 15] and not changed[:4].any() and not changed[:, :9].any()


def test_the_mode_of_dropout_is_left_alone_and_no_gradient_is_kept(tmp_path):
    scan(tmp_path / "scan.nii")
    network = StandIn(3).eval()
    segment_file(tmp_path / "scan.nii", network, RANGE_3D)
    assert not network.training and all(p.grad is None for p in network.parameters())
    assert torch.is_grad_enabled()


# ---- what a user can get wrong: (builds the arguments, what the one line must name)

WRONG = {
    "a question": (lambda f, m: [f("scan.nii"), "where?", "--model", m(RANGE_3D, dims=3)], "takes no question"),
    "an ensemble": (lambda f, m: [f("scan.nii"), "--ensemble", 2, "--model", m(RANGE_3D, dims=3)], "no --ensemble"),
    "no preprocessing": (lambda f, m: [f("scan.nii"), "--model", m(None, dims=3)], "no preprocessing.json in it"),
    "a 2-D network": (
        lambda f, m: [f("scan.nii"), "--model", m(Preprocessing((8, 8)), dims=2)],
        "scan.nii: a 3-D input, and the network is 2-D",
    ),
    "another ending": (
        lambda f, m: [f("scan.nii"), "-o", "out.png", "--model", m(RANGE_3D, dims=3)],
        "out.png: scan.nii gives a .nii.gz or .nii file",
    ),
    "one channel of two": (
        lambda f, m: [f("scan.nii"), "--model", m(RANGE_3D, dims=3, channels=2)],
        "scan.nii: 3-D (12 × 10 × 7) where a 4-D file of 2 channels is expected",
    ),
    "a missing file": (
        lambda f, m: [f("scan.nii").parent / "no.nii", "--model", m(RANGE_3D, dims=3)],
        "no.nii: no such file",
    ),
    "no folder for the result": (
        lambda f, m: [f("scan.nii"), "-o", f("scan.nii").parent / "no" / "out.nii", "--model", m(RANGE_3D, dims=3)],
        "out.nii: cannot be written",
    ),
    "a language model without a question": (
        lambda f, m: [f("scan.nii"), "--model", "owner/name"],
        "question: none given; only a medical segmenter as --model goes without one",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line(tmp_path, capsys, model, name):
    def file(given):
        scan(tmp_path / given)
        return tmp_path / given

    build, message = WRONG[name]
    code, _, err = run(capsys, "segment", *build(file, model))
    lines = [line for line in err.splitlines() if line.startswith("popen: ")]
    assert code == 1 and len(lines) == 1 and message in lines[0]


def test_labels_of_a_picture_are_not_written_as_a_volume(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in.png")
    segmented = segment_file(tmp_path / "in.png", StandIn().eval(), Preprocessing((8, 8), scale="8-bit"))
    with pytest.raises(DataError, match="the input is a picture and no volume"):
        segmented.write_labels(tmp_path / "out.nii")


def test_where_results_go():
    assert str(output_path("a/scan.v2.NII.GZ")) == "a/scan.v2-popen.nii.gz"
    assert str(output_path("a/in.jpeg")) == "a/in-popen.png"
    assert str(output_path("a/in.jpeg", "b.PNG")) == "b.PNG"


def test_folders_of_segmenters_are_told_by_their_configuration(tmp_path):
    assert not is_segmenter_folder(tmp_path)
    for content, expected in (
        ('{"model_type": "popen-segmenter"}', True),
        ('{"model_type": "popen"}', False),
        ("[]", False),
    ):
        (tmp_path / "config.json").write_text(content)
        assert is_segmenter_folder(tmp_path) is expected
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json:1: not JSON"):
        is_segmenter_folder(tmp_path)
