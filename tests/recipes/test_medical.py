"""Every medical YAML for a few steps on pictures and volumes built here, from files to a model that segments."""

import importlib.util
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from popen.medical.segment_file import load_segmenter

ROOT = Path(__file__).parent.parent.parent
YAMLS = sorted((ROOT / "recipes" / "medical").glob("*.yaml"))


def ball(rng, shape):
    """A bright ball in noise and its mask."""
    axes = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    centre = [n / 2 + rng.integers(-2, 3) for n in shape]
    mask = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) < (min(shape) / 4) ** 2
    return 60 + 100 * mask + rng.normal(0, 20, shape), mask


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for part in ("images", "masks", "masks_2"):
        (folder / part).mkdir()
    for number in range(10):
        grey, mask = ball(rng, (32, 32))
        Image.fromarray(np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, 2)).save(
            folder / "images" / f"p{number}.png"
        )
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"p{number}.png")
        Image.fromarray(np.roll(mask, 2).astype(np.uint8) * 255).save(folder / "masks_2" / f"p{number}.png")
    return folder


def raw_folder(folder, channels, labels):
    """Four volumes of a ball; the halves of it have ids of their own where the labels name three."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    for number in range(4):
        grey, mask = ball(rng, (14, 16, 12))
        ids = mask.astype(np.uint8)
        if len(labels) > 2:
            ids[:, 8:] *= 2
            ids[:, 8:, 6:] = 3 * mask[:, 8:, 6:]
        nibabel.Nifti1Image(ids, np.eye(4)).to_filename(folder / "labelsTr" / f"v{number}.nii.gz")
        for channel in range(len(channels)):
            own = (grey + rng.normal(0, 5, grey.shape)).astype(np.float32)
            nibabel.Nifti1Image(own, np.eye(4)).to_filename(folder / "imagesTr" / f"v{number}_{channel:04d}.nii.gz")
    description = {
        "channel_names": {str(k): name for k, name in enumerate(channels)}, "labels": labels, "numTraining": 4,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Two data sets by the end of the YAML's name: one modality and class; four modalities and nested regions."""
    brats = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing tumour": [3]}
    return {
        "3d": raw_folder(tmp_path_factory.mktemp("volumes"), ["MR"], {"background": 0, "ball": 1}),
        "brats": raw_folder(tmp_path_factory.mktemp("brats"), ["T1", "T1ce", "T2", "Flair"], brats),
    }


def small(file, pictures, volumes, out):
    """The YAML as it is, at sizes that take seconds."""
    flat, last = file.stem.endswith("2d"), "brats" if "brats" in file.stem else "3d"
    size = ["32", "32"] if flat else ["64", "32", "32"] if "swin" in file.stem else ["16", "16", "16"]
    steps, base = {"mapo": "4", "pareto": "1"}.get(file.stem.partition("_")[0], "2"), "20" if flat else "4"
    if "swin" in file.stem:  # one step of a narrow one; the YAML's takes minutes
        narrow = out.parent / file.name
        narrow.write_text(
            file.read_text() + "network_options: {feature_size: 12, depths: [1, 1, 1, 1], window_size: 4}\n"
        )
        file, steps, base = narrow, "1", "1"
    return [
        "--config", str(file), "--data", str(pictures if flat else volumes[last]), "--output_dir", str(out),
        "--patch_size", *size, "--base_steps", base, "--base_learning_rate", "1e-2",
        "--max_steps", steps, "--per_device_train_batch_size", "2",
        "--use_cpu", "true", "--disable_tqdm", "true", "--dev_share", "0.34", "--least_gap", "0.0001",
        *(["--labelled", "2"] if "rn_dpo" in file.stem else []),
        *(["--patient", "(.+)"] if "annotators" in file.stem else []),
        *(["--spacing", "1", "1", "1"] if last == "brats" else []),
        *(["--rounds", "1", "--dropout_rates", "0.3", "0.5", "--sampler", "dropout"] if "swin" in file.stem else []),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def medical():
    """The recipe as a module; imported once, as importing it takes most of its time here."""
    spec = importlib.util.spec_from_file_location("recipe_medical", ROOT / "recipes" / "medical.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.use_all_cores = lambda: None  # the other tests go on after this one
    return module


def started(medical, monkeypatch, *argv):
    """`recipes/medical.py` with a command line; what it was stopped by, or 0."""
    monkeypatch.setattr(sys, "argv", ["medical.py", *argv])
    try:
        medical.run(
            medical.main,
            medical.ScriptArguments,
            medical.PairArguments,
            medical.LossArguments,
            medical.MedicalArguments,
        )
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.filterwarnings("ignore")  # MONAI's of its own past; of masks that are equal after two steps
@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_a_yaml_trains_a_model_that_segments(file, medical, pictures, volumes, tmp_path, monkeypatch, capfd):
    argv = small(file, pictures, volumes, tmp_path / "model")
    assert not started(medical, monkeypatch, *argv, "--least_correct", "0", "--most_bias", "100")
    said = capfd.readouterr().out
    assert "dev Dice" in said and ("the judge on labelled" in said) == ("rn_dpo" in file.stem)
    segmenter, preprocessing = load_segmenter(tmp_path / "model")
    assert segmenter.settings.network in file.read_text() and preprocessing.size == segmenter.settings.patch_size
    assert not list((tmp_path / "model").rglob("*.bin"))
    stages = sorted(path.parent.name for path in (tmp_path / "model").glob("*/trainer_state.json"))
    assert stages[0] == "base" and (tmp_path / "model" / "pairs.json").is_file()
    parts = json.loads((tmp_path / "model" / "splits.json").read_text())
    names = [name for part in parts.values() for name in part]
    assert parts["dev"] and len(names) == len(set(names)) == (10 if file.stem.endswith("2d") else 4)
    assert segmenter.settings.flips_threshold is not None
    if "brats" in file.stem:
        assert segmenter.settings.in_channels == 4
        assert segmenter.settings.regions == ("whole tumour", "tumour core", "enhancing tumour")
        assert segmenter.settings.label_ids == ((1, 2, 3), (2, 3), (3,))
    if "annotators" in file.stem:
        assert stages == ["base", "round_1"] and "{'kept': " in said


@pytest.mark.filterwarnings("ignore")
def test_pairs_between_saved_models_and_dev_on_the_way(medical, pictures, volumes, tmp_path, monkeypatch, capfd):
    """A first run leaves its stages, and a second one prefers between their masks."""
    argv = small(ROOT / "recipes" / "medical" / "rn_dpo_unet2d.yaml", pictures, volumes, tmp_path / "first")
    loose = ["--least_correct", "0", "--most_bias", "100", "--eval_strategy", "steps", "--eval_steps", "15"]
    loose += ["--preference_weight", "5", "--learning_rate", "1e-2"]  # so that the stages differ after two steps
    assert not started(medical, monkeypatch, *argv, *loose)
    last = capfd.readouterr().out.strip().splitlines()[-1]
    stages = [tmp_path / "first" / name for name in ("base", "round_1")]
    logs = [json.loads((stage / "trainer_state.json").read_text())["log_history"] for stage in stages]
    dev = [[(line["step"], line["eval_dice"]) for line in log if "eval_dice" in line] for log in logs]
    assert [step for step, _ in dev[0]] == [15, 20] and [step for step, _ in dev[1]] == [2]
    assert f"dev Dice {dev[1][-1][1]:.4f}" in last
    argv[argv.index("--output_dir") + 1] = str(tmp_path / "second")
    checkpoints = ["--sampler", "checkpoints", "--checkpoints", *map(str, stages), "--least_gap", "0"]
    assert not started(medical, monkeypatch, *argv, *loose, *checkpoints)
    assert json.loads((tmp_path / "second" / "pairs.json").read_text())["checkpoints"] == [str(s) for s in stages]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Three pictures without masks, named as labelled ones are."""
    folder, rng = tmp_path_factory.mktemp("unlabelled"), np.random.default_rng(1)
    for number in range(3):
        grey, _ = ball(rng, (32, 32))
        levels = np.clip(grey, 0, 255).astype(np.uint8)
        Image.fromarray(np.repeat(levels[..., None], 3, 2)).save(folder / f"p{number}.png")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_pictures_without_masks_join_the_pool_and_a_part_is_left_alone(
    medical, pictures, volumes, unlabelled, tmp_path, monkeypatch, capfd
):
    """All other patients are labelled, so that pairs come from pictures without masks; five steps, two rounds."""
    argv = small(ROOT / "recipes" / "medical" / "rn_dpo_unet2d.yaml", pictures, volumes, tmp_path / "model")
    argv = [*argv[: argv.index("--labelled")], "--labelled", "5", "--pool", str(unlabelled), "--test_share", "0.2"]
    argv[argv.index("--dev_share") + 1] = "0.3"
    more = ["--activation", "softmax", "--regions", "polyp", "--rounds", "2", "--max_steps", "5", "--least_gap", "0"]
    assert not started(medical, monkeypatch, *argv, *more, "--least_correct", "0", "--most_bias", "100")
    said = capfd.readouterr().out
    assert "5 labelled, 3 in the pool, 3 dev windows; background, polyp" in said and "round 2 of 2" in said
    parts = json.loads((tmp_path / "model" / "splits.json").read_text())
    counts = {"labelled": 5, "pool": 0, "dev": 3, "test": 2, "unlabelled": 3}
    assert {name: len(part) for name, part in parts.items()} == counts and parts["unlabelled"] == ["p0", "p1", "p2"]
    logs = [json.loads((tmp_path / "model" / f"round_{n}" / "trainer_state.json").read_text()) for n in (1, 2)]
    assert [log["global_step"] for log in logs] == [2, 3]


@pytest.mark.filterwarnings("ignore")
def test_volumes_without_a_dataset_json(medical, pictures, volumes, tmp_path, monkeypatch, capfd):
    """What `popen data check` passes can be trained on; ids are those of the files."""
    for part, own in (("images", "imagesTr"), ("labels", "labelsTr")):
        (tmp_path / part).mkdir()
        for file in (volumes["3d"] / own).iterdir():
            (tmp_path / part / file.name.replace("_0000", "")).write_bytes(file.read_bytes())
    argv = small(ROOT / "recipes" / "medical" / "pareto_unet3d.yaml", pictures, volumes, tmp_path / "model")
    argv[argv.index("--data") + 1] = str(tmp_path)
    assert not started(medical, monkeypatch, *argv, "--regions", "ball")
    settings = load_segmenter(tmp_path / "model")[0].settings
    names = ("background", "ball") if settings.activation == "softmax" else ("ball",)
    assert settings.regions == names and settings.label_ids[-1] == (1,)


@pytest.mark.filterwarnings("ignore")
def test_a_judge_that_learns_is_weighed_under_flips_beside_an_epsilon_constraint(
    medical, pictures, volumes, tmp_path, monkeypatch, capfd
):
    file = ROOT / "recipes" / "medical" / "rn_dpo_unet2d.yaml"
    more = {
        "labelled": 4, "judge": "regressor", "regressor_steps": 4, "flip_rate": 0.5, "unfit_judge": "weight",
        "least_correct": 1.01, "supervised": "epsilon_constraint", "least_gap": 0, "seed": 3,
    }  # fmt: skip
    options = [text for name, value in more.items() for text in (f"--{name}", str(value))]
    code = started(medical, monkeypatch, *small(file, pictures, volumes, tmp_path / "model"), *options)
    said = capfd.readouterr()
    assert "(2 that it has not learned on)" in said.out and "unfit, its pairs get a weight by growth" in said.out
    if code:  # labelled pictures are few: each weight may be 0
        assert "the judge's word counts nothing for any of" in said.err
    else:
        assert "'flipped': " in said.out and "'weightless': " in said.out and "dev Dice" in said.out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dropout", "0"], "sampler: dropout, and the network has none; set dropout above 0 or take sampler: flips"),
        (["--least_gap", "0.9"], "gaps between best and worst"),
        (["--labelled", "50"], "50 patients: give a number from 1 to 7"),
        (["--least_correct", "1.01"], "the judge is unfit on"),
        (["--network", "vnet"], "vnet"),
        (["--flip_rate", "1.5"], "flip_rate = 1.5: a share of the judge's orders lies in 0..1"),
        (
            ["--multiplier_rate", "0"],
            "multiplier_rate = 0.0: the limit cannot be negative, and the rate must be above",
        ),
        (["--labelled", "1", "--judge", "regressor"], "judge: regressor learns on half of the labelled patients"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint: a run has stages with mining between them"),
        (["--rounds", "3"], "rounds = 3, max_steps = 2: each round needs a step; change one of them"),
        (["--pool", "nowhere"], "nowhere: no such folder"),
        (["--pool", "nowhere", "--judge", "truth"], "pool: nobody labelled it, and judge: truth needs labels"),
        (["--pool", "nowhere", "--pairs_from", "labelled"], "pool: used with pairs_from: pool and a preference or"),
        (["--pool", "nowhere", "--preference_weight", "0"], "pool: used with pairs_from: pool and a preference or"),
        (["--labelled", "7"], "labelled = 7: all patients are, none is left for the pool; label less"),
        (["--regions", "a", "b"], "pictures have one mask each, and the regions are a, b; name one"),
    ],
)
def test_what_cannot_work_is_one_line(extra, message, medical, pictures, volumes, tmp_path, monkeypatch, capfd):
    file = ROOT / "recipes" / "medical" / "rn_dpo_unet2d.yaml"
    assert started(medical, monkeypatch, *small(file, pictures, volumes, tmp_path / "model"), *extra) == 1
    assert message in capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.filterwarnings("ignore")
def test_pools_that_leak_or_have_other_channels_are_one_line(medical, pictures, volumes, tmp_path, monkeypatch, capfd):
    yaml = ROOT / "recipes" / "medical"
    argv = small(yaml / "rn_dpo_unet2d.yaml", pictures, volumes, tmp_path / "model")
    assert started(medical, monkeypatch, *argv, "--pool", str(pictures)) == 1  # its own pictures again
    assert "pool: p0 is the picture of p0 in " in capfd.readouterr().err.strip().splitlines()[-1]
    assert started(medical, monkeypatch, *argv, "--pool", str(pictures), "--patient", r"(p\d)") == 1
    assert "patient 'p0': in the splits " in capfd.readouterr().err.strip().splitlines()[-1]
    argv = small(yaml / "rn_dpo_unet3d_brats.yaml", pictures, volumes, tmp_path / "model")
    assert started(medical, monkeypatch, *argv, "--pool", str(volumes["3d"] / "imagesTr")) == 1
    assert "v0 has the channels [0], and the labelled cases have 4" in capfd.readouterr().err.strip().splitlines()[-1]
