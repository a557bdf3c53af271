"""The medical evaluation from start to end, on four pictures and on volumes, with networks that nobody trained."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eval import medical
from eval.medical_metrics import ScoringProtocol, read_medical_rows
from eval.medical_splits import read_split, scored_regions, true_masks
from popen.data.medical_case import Case
from popen.data.patient_splits import write_splits
from popen.data.safe_io import DataError, read_image
from popen.distributed.ranks import Ranks
from popen.medical.configuration import SegmenterConfig
from popen.medical.segmenter import Segmenter
from popen.medical.transforms import Preprocessing

SMALL = {"channels": (4, 8), "num_res_units": 0}


class Reddish(torch.nn.Module):
    """Foreground where the picture is redder than green: logits of ±6, so that the right answer is known."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(6.0))

    def forward(self, pictures):
        return self.scale * torch.sign(pictures[:, :1] - pictures[:, 1:2] - 0.1)


def configuration(**changes):
    values = {"network": "unet", "spatial_dims": 2, "in_channels": 3, "regions": ("polyp",), "activation": "sigmoid",
              "patch_size": (32, 32), "options": SMALL}  # fmt: skip
    return SegmenterConfig(**values | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pictures with a red box each, which the mask of the last two does not hold in full or not at all."""
    root = tmp_path_factory.mktemp("polyps")
    for name in ("images", "masks"):
        (root / "dev" / name).mkdir(parents=True)
    for number in range(4):
        picture = np.full((32, 32, 3), 90, np.uint8)
        picture[8:24, 8:24, 0] = 220
        mask = np.zeros((32, 32), np.uint8)
        mask[8:24, 8 : (24, 24, 16, 8)[number]] = 255
        Image.fromarray(picture).save(root / "dev" / "images" / f"p{number}.png")
        Image.fromarray(mask).save(root / "dev" / "masks" / f"p{number}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    Segmenter(configuration()).save_pretrained(folder)
    Preprocessing((32, 32), scale="8-bit", fit="resize").save_pretrained(folder)
    return folder


def evaluate(monkeypatch, model, data, out, *options):
    argv = ["eval.medical", "--model", str(model), "--data", str(data), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", argv)
    medical.main()
    return read_medical_rows(out / "rows.jsonl"), json.loads((out / "summary.json").read_text())


def reddish():
    segmenter = Segmenter(configuration(), Reddish()).eval()
    return medical.Inference(segmenter, Preprocessing((32, 32), scale="8-bit", fit="resize"), 0.5, False)


def test_a_known_answer_is_scored_by_hand(data):
    """The box is found as it is: right twice, twice as wide as the truth (Dice 2/3), and invented."""
    inference = reddish()
    references = read_split(data, "dev", inference.segmenter.settings)
    rows = medical.score_split(inference, references, ScoringProtocol(), Ranks(), "here")
    assert [row.dice for row in rows] == pytest.approx([1, 1, 2 / 3, 0])
    assert [row.hd95 for row in rows] == pytest.approx([0, 0, 8, 31 * 2**0.5])
    assert [row.invented for row in rows] == [False, False, False, True]
    assert rows[0].calibration.pixels[0] == 32 * 32 - 16 * 16 and rows[0].calibration.pixels[14] == 16 * 16


def test_a_run_leaves_rows_summary_report_and_pictures(monkeypatch, model, data, tmp_path, capsys):
    rows, summary = evaluate(monkeypatch, model, data, tmp_path / "out", "--tolerance", "2", "--band", "3")
    assert [(row.case, row.region, row.patient) for row in rows] == [(f"p{i}", "polyp", f"p{i}") for i in range(4)]
    assert summary["protocol"]["tolerance"] == 2 and summary["protocol"]["band"] == 3
    assert summary["all"]["cases"] == 4 and summary["all"]["dice"] == pytest.approx(np.mean([r.dice for r in rows]))
    assert set(summary["shown"]) == {"worst", "median", "best"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert capsys.readouterr().out.strip() in report and "NSD at 2 mm" in report
    for place in summary["shown"]:
        assert read_image(tmp_path / "out" / f"{place}.png").size == (640, 320)


def test_the_same_run_gives_the_same_rows_and_flips_others(monkeypatch, model, data, tmp_path):
    first, again = (evaluate(monkeypatch, model, data, tmp_path / name)[0] for name in ("a", "b"))
    flipped, summary = evaluate(monkeypatch, model, data, tmp_path / "c", "--flips")
    assert first == again != flipped and summary["flips"]
    assert ", found without flips" in (tmp_path / "c" / "report.md").read_text()
    assert ", found without flips" not in (tmp_path / "a" / "report.md").read_text()


def test_a_part_of_the_data_that_a_run_was_trained_on(monkeypatch, model, data, tmp_path):
    """The parts are beside the model, or in a file that is named; the cases are in the folder without a split."""
    write_splits(tmp_path / "run", {"labelled": ["p0", "p2"], "dev": ["p1", "p3"], "test": []})
    for file in ("config.json", "model.safetensors", "preprocessing.json"):
        (tmp_path / "run" / file).write_bytes((model / file).read_bytes())
    rows, summary = evaluate(monkeypatch, tmp_path / "run", data / "dev", tmp_path / "out", "--part", "dev")
    assert [row.case for row in rows] == ["p1", "p3"] and summary["split"] == "dev"
    named = ["--splits", str(tmp_path / "run" / "splits.json")]
    rows, _ = evaluate(monkeypatch, model, data / "dev", tmp_path / "out", "--part", "labelled", *named)
    assert [row.case for row in rows] == ["p0", "p2"]
    with pytest.raises(DataError, match=r"splits\.json: of its parts none is asked for; add --part dev"):
        evaluate(monkeypatch, model, data / "dev", tmp_path / "out", *named)
    with pytest.raises(
        DataError, match=r"splits\.json: no cases in the part 'test'; there: labelled \(2\), dev \(2\)"
    ):
        evaluate(monkeypatch, model, data / "dev", tmp_path / "out", "--part", "test", *named)
    write_splits(tmp_path / "other", {"dev": ["p1", "q1", "q2"]})
    with pytest.raises(DataError, match=r"dev: 2 cases of dev in .* are not in it, first q1; give the data that"):
        evaluate(
            monkeypatch, model, data / "dev", tmp_path / "out", "--part", "dev", "--splits",
            str(tmp_path / "other" / "splits.json"),
        )  # fmt: skip


def test_predictions_averaged_over_flips_have_a_threshold_of_their_own(data):
    """Logits of ±6: at a threshold of 7 there is nothing to see."""
    case = read_split(data, "dev", configuration())[0].load()
    for flips, seen in ((False, True), (True, False)):
        segmenter = Segmenter(configuration(flips_threshold=7.0), Reddish()).eval()
        inference = medical.Inference(segmenter, Preprocessing((32, 32), scale="8-bit", fit="resize"), 0.5, flips)
        assert inference.threshold == (7 if flips else 0) and inference.segment(case)[0].any() == seen


def test_the_background_of_classes_is_not_scored():
    """Of three classes with one probability each, the two that are no background."""
    config = configuration(regions=("background", "front", "back"), activation="softmax")

    class Thirds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = torch.nn.Parameter(torch.tensor([0.5, 0.3, 0.2]).log())

        def forward(self, pictures):
            return self.rows[None, :, None, None].expand(len(pictures), 3, *pictures.shape[2:])

    inference = medical.Inference(Segmenter(config, Thirds()).eval(), Preprocessing((32, 32)), 0.5, False)
    case = Case("a", "a", np.zeros((3, 32, 32), np.float32), None, (1.0, 1.0))
    masks, probabilities = inference.segment(case)
    assert scored_regions(config) == ("front", "back")
    assert masks.shape == probabilities.shape == (2, 32, 32) and not masks.any()
    np.testing.assert_allclose(probabilities[:, 5, 5], [0.3, 0.2], rtol=1e-5)


def masks_of(count):
    masks = np.zeros((count, 4, 4), bool)
    masks[-1] = True
    return Case("case 7", "a", np.zeros((3, 4, 4), np.float32), masks, (1.0, 1.0))


def test_truth_comes_with_and_without_a_background():
    classes = configuration(regions=("background", "polyp"), activation="softmax")
    for count in (1, 2):
        assert true_masks(masks_of(count), classes).shape == (1, 4, 4) and true_masks(masks_of(count), classes).all()


def test_truth_of_other_regions_is_refused():
    with pytest.raises(DataError, match="case 7: 3 masks, and the model knows polyp; give another model"):
        true_masks(masks_of(3), configuration())
    unlabelled = Case("case 8", "a", np.zeros((3, 4, 4), np.float32), None, (1.0, 1.0))
    with pytest.raises(DataError, match="case 8: no masks to score against; choose a split with labels"):
        true_masks(unlabelled, configuration())


def test_a_split_must_be_there(data):
    with pytest.raises(DataError, match=r"test: no folder images with masks or labels in it; .* --part dev the"):
        read_split(data, "test", configuration())


@pytest.mark.parametrize("ids", [(1, 2), (4, 9)])
def test_label_maps_are_numbered_as_segment_writes_them(tmp_path, ids):
    for name in ("images", "labels"):
        (tmp_path / "dev" / name).mkdir(parents=True)
    nibabel = pytest.importorskip("nibabel")
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1], labels[2] = ids
    known = None if ids == (1, 2) else tuple((label,) for label in ids)
    for name in ("images", "labels"):
        nibabel.save(nibabel.Nifti1Image(labels, np.diag([1, 2, 3, 1])), tmp_path / "dev" / name / "a.nii.gz")
    regions = {"spatial_dims": 3, "in_channels": 1, "patch_size": (4, 4, 4)}
    names, with_zero = ("background", "front", "back"), known and ((0,), *known)
    classes = configuration(regions=names, activation="softmax", label_ids=with_zero, **regions)
    free = configuration(regions=("front", "back"), label_ids=known, **regions)
    for config in (classes, free):
        (reference,) = read_split(tmp_path, "dev", config)
        case = reference.load()
        assert case.spacing == (1, 2, 3)
        np.testing.assert_array_equal(true_masks(case, config), [labels == ids[0], labels == ids[1]])


@pytest.mark.parametrize("regions", [("front", "back"), ("back", "front")])
def test_a_dataset_json_must_name_the_regions_of_the_model(tmp_path, regions):
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "front": [1, 2], "back": [2]}}
    (tmp_path / "dataset.json").write_text(json.dumps(described | {"numTraining": 1, "file_ending": ".png"}))
    for name in ("imagesTr/a_0000.png", "labelsTr/a.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.full((4, 4), 2, np.uint8)).save(tmp_path / name)
    config = configuration(regions=regions)
    if regions == ("front", "back"):
        (reference,) = read_split(tmp_path, "Tr", config)
        assert true_masks(reference.load(), config).all()
    else:
        with pytest.raises(DataError, match="labels front, back, and the model knows back, front; give another model"):
            read_split(tmp_path, "Tr", config)
