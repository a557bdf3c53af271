"""The report of a run: its curves, hypotheses by hand, and the whole from a folder to pictures."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from eval import medical_report
from eval.medical_curves import curves, peak_and_last, read_stages
from eval.medical_hypotheses import hypotheses, read_pair_arguments
from popen.data.medical_case import Case
from popen.data.safe_io import DataError, read_image
from popen.medical.configuration import SegmenterConfig
from popen.medical.pair_choices import PairArguments, sampler_of
from popen.medical.segmenter import Segmenter
from popen.medical.transforms import Preprocessing
from popen.preference.diversity import pairwise_iou, variance_map

BASE = [{"step": 2, "loss": 3.0, "seg/ce": 2.0, "seg/dice": 1.0}, {"step": 2, "eval_dice": 0.5},
        {"step": 4, "loss": 1.5, "seg/ce": 1.0, "seg/dice": 0.5}, {"step": 4, "eval_dice": 0.25}]  # fmt: skip
ROUND = [{"step": 3, "loss": 1.0, "seg/ce": 0.5, "rewards/margins": 0.25, "rewards/accuracies": 1.0},
         {"step": 3, "eval_dice": 0.75}]  # fmt: skip


def leave(run, **stages):
    """The logs of a run's stages."""
    for name, log in stages.items():
        (run / name).mkdir(parents=True)
        (run / name / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return run


def test_stages_follow_one_another(tmp_path):
    stages = read_stages(leave(tmp_path, round_10=ROUND, base=BASE, round_2=ROUND))
    assert [(stage.name, stage.steps) for stage in stages] == [("base", 4), ("round_2", 3), ("round_10", 3)]
    assert stages[0].lines["eval_dice"] == [(2, 0.5), (4, 0.25)]
    drawn = curves(stages)
    assert list(drawn) == ["Loss on labels", "Preference margin, logits", "Pairs ordered right, share", "Dev Dice"]
    svg = "{http://www.w3.org/2000/svg}"
    (line,) = ElementTree.fromstring(drawn["Dev Dice"]).iter(f"{svg}polyline")
    xs = [float(point.split(",")[0]) for point in line.get("points").split()]
    assert np.diff(xs) / np.diff(xs).sum() == pytest.approx([2 / 8, 3 / 8, 3 / 8], abs=1e-3)  # at 2, 4, 7 and 10
    names = [text.text for text in ElementTree.fromstring(drawn["Loss on labels"]).iter(f"{svg}text")]
    assert {"ce", "dice"} <= set(names)


def test_peak_and_last_stand_beside_one_another(tmp_path):
    told = peak_and_last(read_stages(leave(tmp_path, base=BASE, round_1=ROUND)))
    assert "| base | 4 | 50.00 | 2 | 25.00 |" in told and "| round 1 | 3 | 75.00 | 3 | 75.00 |" in told
    unwatched = read_stages(leave(tmp_path / "other", base=[line for line in BASE if "eval_dice" not in line]))
    assert "`eval_strategy: steps` and `eval_steps` show peak and last" in peak_and_last(unwatched)


def test_a_run_without_its_log_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"base/trainer_state\.json: no such file; give the output_dir of recipes/med"):
        read_stages(tmp_path)
    with pytest.raises(DataError, match="expected a log_history of lines with their step; train again"):
        read_stages(leave(tmp_path, base=[{"loss": 1.0}]))
    with pytest.raises(DataError, match=r"pairs\.json: no such file"):
        read_pair_arguments(tmp_path)
    (tmp_path / "pairs.json").write_text('{"smapler": "flips"}')
    with pytest.raises(DataError, match=r"pairs\.json: expected an object with keys of PairArguments"):
        read_pair_arguments(tmp_path)


class Bright(torch.nn.Module):
    """A logit for each class: 0 for the background, the brightness for the other."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, pictures):
        return torch.cat([0 * pictures, pictures * self.gain], 1)


def test_hypotheses_are_put_together_from_patches_by_hand():
    """Three cuts of a ramp from −4 to 3 seen in two patches: 3, 4 and 5 columns, so 3/4, 4/5, 3/5 of one another."""
    config = SegmenterConfig("bright", 2, 1, ("background", "bright"), "softmax", (4, 4))
    segmenter = Segmenter(config, Bright()).eval()
    pairs = PairArguments(sampler="thresholds", threshold_offsets=[-0.5, 0.5, 1.5])
    ramp = np.tile(np.arange(-4, 4, dtype=np.float32), (4, 1))[None] * 255
    case = Case("a", "a", ramp, None, (1.0, 1.0))
    preprocessing = Preprocessing((4, 4), scale="8-bit")
    masks = hypotheses(segmenter, preprocessing, sampler_of(pairs, 2, 0.0, 0), case, 0.5)
    assert masks.shape == (3, 1, 4, 8) and masks[:, 0, 0].sum(1).tolist() == [3, 4, 5]
    assert pairwise_iou(masks) == pytest.approx((3 / 4 + 4 / 5 + 3 / 5) / 3)
    assert variance_map(masks)[0, 0].tolist() == pytest.approx([0, 0, 0, 2 / 9, 2 / 9, 0, 0, 0])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("polyps")
    for name in ("images", "masks"):
        (root / "dev" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        picture, mask = rng.integers(0, 90, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        picture[8:24, 8:24, 0], mask[8:24, 8 : 24 - 4 * number] = 220, 255
        Image.fromarray(picture).save(root / "dev" / "images" / f"p{number}.png")
        Image.fromarray(mask).save(root / "dev" / "masks" / f"p{number}.png")
    return root


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    options = {"channels": (4, 8), "num_res_units": 0}
    config = SegmenterConfig("unet", 2, 3, ("polyp",), "sigmoid", (32, 32), 0.2, options=options)
    Segmenter(config).save_pretrained(tmp_path / "run")
    Preprocessing((32, 32), scale="8-bit", fit="resize").save_pretrained(tmp_path / "run")
    pairs = PairArguments(sampler="dropout_and_flips", dropout_rates=[0.3, 0.5])
    (tmp_path / "run" / "pairs.json").write_text(json.dumps(asdict(pairs)))
    return leave(tmp_path / "run", base=BASE, round_1=ROUND)


def reported(monkeypatch, run, data, out, *options):
    argv = ["eval.medical_report", "--run", str(run), "--data", str(data), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", argv)
    medical_report.main()
    return (out / "report.md").read_text(), json.loads((out / "summary.json").read_text())


def test_a_report_shows_scores_curves_and_three_pictures_a_case(monkeypatch, run, data, tmp_path):
    report, summary = reported(monkeypatch, run, data, tmp_path / "out")
    assert "base of 4 steps and round 1 of 3 steps" in report and "| base | 4 | 50.00 | 2 | 25.00 |" in report
    assert "6 hypotheses by `sampler: dropout_and_flips`" in report and "Dice, %" in report
    assert summary["pairwise_iou"].keys() == {"p0", "p1", "p2"} and summary["hypotheses"] == 6
    for chart in ("loss_on_labels", "preference_margin", "pairs_ordered_right", "dev_dice"):
        assert f"({chart}.svg)" in report and ElementTree.parse(tmp_path / "out" / f"{chart}.svg")
    for place in ("worst", "median", "best"):
        assert f"({place}.png)" in report and read_image(tmp_path / "out" / f"{place}.png").size == (960, 320)
    report, summary = reported(monkeypatch, run, data, tmp_path / "flips", "--sampler", "flips")
    assert summary["hypotheses"] == 4 and "4 hypotheses by `sampler: flips`" in report
