"""The recipes one after the other on a few scenes, as `make demo` strings them together."""

import functools
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval import report, segmentation
from popen.data.safe_io import DataError
from popen.data.scene_questions import sample
from popen.data.schema import load_split, write_dataset
from popen.lvlm import calibration
from popen.lvlm.loading import load_model
from popen.lvlm.tiny import build_tiny

RECIPES = Path(__file__).parent.parent.parent / "recipes"
QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"recipe_run_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "use_all_cores"):
        module.use_all_cores = lambda: None  # the other tests go on after this one
    return module


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder with everything that the recipes from init to preference_head have written."""
    root = tmp_path_factory.mktemp("chain")
    data = str(root / "data")
    for split, first, count in (("train", 0, 8), ("calibration", 900_000, 3), ("dev", 1_000_000, 3)):
        write_dataset((sample(first + i) for i in range(count)), data, split)

    init = recipe("init_tiny")
    init.build_tiny = functools.partial(build_tiny, width=48, layers=1)
    init.main(init.InitArguments(dataset=data, output_dir=str(root / "init")))

    align = recipe("align")
    training = align.SFTArguments(
        output_dir=str(root / "aligned"), max_steps=3, per_device_train_batch_size=4, learning_rate=4e-3, **QUIET
    )
    align.main(align.ScriptArguments(model_name_or_path=str(root / "init"), dataset=data), training)

    sft = recipe("sft")
    training = sft.SFTArguments(
        output_dir=str(root / "sft"), max_steps=30, per_device_train_batch_size=4, learning_rate=5e-3, **QUIET
    )
    script = sft.ScriptArguments(model_name_or_path=str(root / "aligned"), dataset=data, attn_implementation="eager")
    sft.main(script, training)

    calibrate = recipe("calibrate")
    calibrate.main(calibrate.CalibrationArguments(model_name_or_path=str(root / "sft"), dataset=data))

    mine = recipe("mine")
    settings = mine.MiningArguments(views="embedding", candidates=3, margin=0.001, embedding_noise=1.0, shard_rows=3)
    script = mine.ScriptArguments(model_name_or_path=str(root / "sft"), dataset=data, output_dir=str(root / "mined"))
    mine.main(script, settings)

    preference = recipe("preference")
    tuning = preference.PreferenceArguments(
        output_dir=str(root / "popen"), max_steps=3, per_device_train_batch_size=2, **QUIET
    )
    preference.main(preference_script(preference, root), tuning)

    head = recipe("preference_head")
    head.main(head_arguments(head, root))
    final = calibrate.CalibrationArguments(model_name_or_path=str(root / "final"), dataset=data, ensemble=2, views=1)
    calibrate.main(final)
    return root


def preference_script(module, root, model="sft"):
    return module.ScriptArguments(
        model_name_or_path=str(root / model), preferences=str(root / "mined"), dataset=str(root / "data")
    )


def head_arguments(module, root, model="sft"):
    return module.HeadArguments(
        model_name_or_path=str(root / model), preferences=str(root / "mined"), output_dir=str(root / "final"),
        steps=5, batch_size=8, margin=0.001,
    )  # fmt: skip


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_every_recipe_leaves_a_whole_model(chain):
    for name in ("init", "aligned", "sft", "popen", "final"):
        assert {"config.json", "model.safetensors", "popen_processor.json", "tokenizer.json"} <= {
            file.name for file in (chain / name).iterdir()
        }, name
        load_model(chain / name)
    for name in ("sft", "popen"):
        assert (chain / name / "trainer_state.json").is_file()


def test_each_step_trained_what_it_should(chain):
    folders = ("init", "aligned", "sft", "popen", "final")
    init, aligned, sft, popen, final = (weights(chain / name) for name in folders)

    def changed(before, after):
        return {name for name in before if not torch.equal(before[name], after[name])}

    assert any("mask_decoder" in name for name in changed(init, aligned))
    assert not any("language_model.layers" in name for name in changed(init, aligned))
    assert any("language_model.layers" in name for name in changed(aligned, sft))
    assert any("language_model" in name for name in changed(sft, popen))
    assert changed(sft, final) and all(name.startswith("preference_head.") for name in changed(sft, final))


def test_sft_lowered_the_loss(chain):
    logs = json.loads((chain / "sft" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    assert len(losses) == 30 and losses[-1] < 0.7 * losses[0]


def test_calibration_is_written_and_carried_on(chain):
    assert json.loads((chain / "init" / "config.json").read_text())["embedding_std"] is None
    for name in ("sft", "popen", "final"):
        config = json.loads((chain / name / "config.json").read_text())
        assert len(config["embedding_std"]) == 2 and all(spread > 0 for spread in config["embedding_std"])
        assert -2 <= config["mask_threshold"] <= 2
    assert config["answer_margin"] in (None, *calibration.MARGINS)
    assert config["ensemble_sharpness"] in calibration.SHARPNESSES


def test_mining_left_its_report(chain):
    report = json.loads((chain / "mined" / "mining.json").read_text())
    questions = [q for seed in range(8) for q in sample(seed).questions]
    assert report["text"]["seen"] == len(questions)
    assert report["seg"]["seen"] == sum(len(q.masks) for q in questions)
    assert len(list((chain / "mined" / "shards").iterdir())) == 3
    assert {"model", "data", "rows", "settings"} <= report.keys()


def test_mining_again_changes_nothing(chain):
    before = {file: file.read_bytes() for file in (chain / "mined").rglob("*.parquet")}
    report = (chain / "mined" / "mining.json").read_bytes()
    mine = recipe("mine")
    settings = mine.MiningArguments(views="embedding", candidates=3, margin=0.001, embedding_noise=1.0, shard_rows=3)
    script = mine.ScriptArguments(
        model_name_or_path=str(chain / "sft"), dataset=str(chain / "data"), output_dir=str(chain / "mined")
    )
    mine.main(script, settings)
    assert {file: file.read_bytes() for file in (chain / "mined").rglob("*.parquet")} == before
    assert (chain / "mined" / "mining.json").read_bytes() == report


def test_the_end_can_be_evaluated(chain, monkeypatch):
    out = chain / "eval"
    argv = ["eval.segmentation", "--model", str(chain / "final"), "--data", str(chain / "data"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*argv, "--ensemble", "2", "--controls", "--max-new-tokens", "40"])
    segmentation.run(segmentation.main, segmentation.SegmentationArguments)
    summary = json.loads((out / "summary.json").read_text())
    arms = ["single", "ensemble", "ensemble_masks", "uniform", "rectangle_ensemble", "views", "flip"]
    assert list(summary["arms"]) == arms
    assert summary["pictures"] == 3


@pytest.fixture(scope="module")
def finished(chain, tmp_path_factory):
    """A folder as recipes/path.py leaves it, from the models of the chain."""
    run = tmp_path_factory.mktemp("finished")
    models = {"base": "sft", "continued_sft": "popen", "popen_policy": "popen", "popen": "final", "data": "data"}
    for name, source in models.items():
        (run / name).symlink_to(chain / source)
    for name in ("base", "continued_sft", "popen"):
        more = ["--ensemble", "2", "--controls"] if name == "popen" else []
        with pytest.MonkeyPatch.context() as patch:
            argv = ["eval.segmentation", "--model", str(run / name), "--data", str(run / "data"), *more]
            patch.setattr(sys, "argv", [*argv, "--out", str(run / "eval" / name), "--max-new-tokens", "40"])
            segmentation.run(segmentation.main, segmentation.SegmentationArguments)
    path = recipe("path")
    path.note_cost(run / "cost.json", 60.0)
    path.note_cost(run / "cost.json", 6.0)  # an interrupted run goes on: its seconds add up
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["eval.report", "--run", str(run), "--ensemble", "2", "--seed", "1"])
        report.main()
    return run


def test_the_report_has_the_promised_keys(finished):
    written = json.loads((finished / "report.json").read_text())
    assert list(written["arms"]) == ["base", "continued_sft", "popen", "popen_ensemble"]
    for arm in written["arms"].values():
        assert set(arm) == {"ciou", "giou", "chair_i", "chair_s", "no_target_acc", "n"}
    assert written["seconds"] == 66.0 and written["peak_gib"] > 0
    summary = json.loads((finished / "eval" / "popen" / "summary.json").read_text())
    assert written["arms"]["popen_ensemble"]["ciou"] == summary["arms"]["ensemble"]["ciou"]


def test_the_page_needs_nothing_beside_it(finished):
    page = (finished / "report.html").read_text()
    assert page.count("<tr>") == 10 and page.count("<svg") == 4  # four arms and five controls under one head
    assert page.count('class="card"') == 3  # there are three pictures
    assert page.count("data:image/jpeg;base64,") == 9
    assert not re.search(r'(?:src|href)="(?!data:)', page)


# ---- every shipped YAML, for two steps

TRAINING = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--disable_tqdm", "true"]
LARGE = ["--gradient_accumulation_steps", "1", "--dataloader_num_workers", "0", "--use_cpu", "true"]
EAGER = ["--attn_implementation", "eager"]  # popen-tiny learns to look, those of the YAMLs do not
FEW_ROWS = ["--max_rows", "2", "--candidates", "2"]
SHIPPED = {
    "align_tiny": ("align", "init", TRAINING),
    "align_coco": ("align", "init", TRAINING),
    "sft_tiny": ("sft", "aligned", TRAINING),
    "sft_tiny_words": ("sft", "aligned", TRAINING),
    "sft_coco": ("sft", "aligned", TRAINING),
    "mine_tiny": ("mine", "sft", FEW_ROWS),
    "judge_tiny": ("judge", "sft", ["--max_rows", "3", "--labelled", "1", "--answers", "2", "--least_quality", "0"]),
    "preference_tiny": ("preference", "sft", [*TRAINING, "--preferences", "MINED"]),
    **{f"align_{name}": ("align", "init", [*TRAINING, "--use_cpu", "true"]) for name in ("smol", "smol_cut")},
    **{f"sft_{name}": ("sft", "aligned", [*TRAINING, *LARGE, *EAGER]) for name in ("smol", "smol_cut")},
    **{f"mine_{name}": ("mine", "sft", FEW_ROWS) for name in ("smol", "smol_cut")},
    **{
        f"preference_{name}": ("preference", "sft", [*TRAINING, *LARGE, "--preferences", "MINED"])
        for name in ("smol", "smol_cut")
    },
    **{
        f"sft_{name}_7b": ("sft", "aligned", [*TRAINING, *LARGE, *EAGER, "--rates", "1"]) for name in ("llava", "qwen")
    },
    **{f"mine_{name}_7b": ("mine", "sft", [*FEW_ROWS, "--rates", "1"]) for name in ("llava", "qwen")},
    **{
        f"preference_{name}_7b": ("preference", "sft", [*TRAINING, *LARGE, "--preferences", "MINED", "--rates", "1"])
        for name in ("llava", "qwen")
    },
}


def test_no_yaml_is_left_out():
    paths = {"demo", "path_coco"}  # strings of these recipes; tests/recipes/test_demo.py is for them
    on_cuda = {"sft_qlora_llava_7b"}  # tests/recipes/test_published_setting.py
    assert {file.stem for file in RECIPES.glob("*.yaml")} == set(SHIPPED) | paths | on_cuda


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_yaml_runs(chain, name, tmp_path, monkeypatch):
    script, model, options = SHIPPED[name]
    module = recipe(script)
    options = [str(chain / "mined") if option == "MINED" else option for option in options]
    argv = ["--config", str(RECIPES / f"{name}.yaml"), "--model_name_or_path", str(chain / model)]
    argv += ["--dataset", str(chain / "data"), "--output_dir", str(tmp_path / "out"), *options]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *argv])
    classes = [p.annotation for p in inspect.signature(module.main).parameters.values()]
    module.run(module.main, *classes)
    if script == "mine":
        assert (tmp_path / "out" / "mining.json").is_file()
    elif script == "judge":
        true, judged = (load_split(folder, "train").to_list() for folder in (chain / "data", tmp_path / "out"))
        assert judged[0]["questions"] == true[0]["questions"]  # labelled
        assert judged[1]["questions"] != true[1]["questions"] and len(judged) <= 3
    elif "7b" in name:  # adapters: those of B start at 0
        adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert all(adapter[key].any() for key in adapter if "lora_B" in key)
    else:
        assert any(not torch.equal(a, b) for a, b in both(weights(chain / model), weights(tmp_path / "out")))


def both(first, second):
    assert first.keys() == second.keys()
    return [(first[name], second[name]) for name in first]


# ---- what does not belong together


def refused(call):
    with pytest.raises(DataError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_preferences_of_another_model_are_refused(chain):
    preference, head = recipe("preference"), recipe("preference_head")
    tuning = preference.PreferenceArguments(output_dir=str(chain / "never"), max_steps=1, **QUIET)
    message = refused(lambda: preference.main(preference_script(preference, chain, "popen"), tuning))
    assert str(chain / "mined") in message and "model" in message
    assert str(chain / "mined") in refused(lambda: head.main(head_arguments(head, chain, "popen")))
    assert not (chain / "never" / "model.safetensors").exists()


def test_preferences_of_other_data_are_refused_and_the_data_is_blamed(chain):
    preference = recipe("preference")
    tuning = preference.PreferenceArguments(output_dir=str(chain / "never"), max_steps=1, **QUIET)
    script = preference_script(preference, chain)
    script.split = "dev"
    message = refused(lambda: preference.main(script, tuning))
    assert str(chain / "mined") in message and "data" in message.replace(str(chain), "")


def test_an_unfinished_mining_is_refused(chain, tmp_path):
    preference = recipe("preference")
    script = preference_script(preference, chain)
    script.preferences = str(tmp_path)
    tuning = preference.PreferenceArguments(output_dir=str(tmp_path / "out"), max_steps=1, **QUIET)
    assert "mining.json" in refused(lambda: preference.main(script, tuning))


def test_mining_into_the_folder_of_another_run_is_refused(chain):
    mine = recipe("mine")
    script = mine.ScriptArguments(
        model_name_or_path=str(chain / "sft"), dataset=str(chain / "data"), output_dir=str(chain / "mined")
    )
    message = refused(lambda: mine.main(script, mine.MiningArguments(views="embedding", candidates=5)))
    assert str(chain / "mined") in message and "settings" in message


def test_a_split_that_is_not_there_is_refused(chain):
    calibrate = recipe("calibrate")
    arguments = calibrate.CalibrationArguments(
        model_name_or_path=str(chain / "sft"), dataset=str(chain / "data"), split="nowhere"
    )
    message = refused(lambda: calibrate.main(arguments))
    assert "nowhere" in message and "dev" in message


# ---- how a recipe ends


def start(monkeypatch, name, *options):
    module = recipe(name)
    monkeypatch.setattr(sys, "argv", [f"recipes/{name}.py", *map(str, options)])
    module.run(module.main, module.CalibrationArguments)


def test_an_error_is_one_line_and_code_one(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "calibrate", "--model_name_or_path", tmp_path / "none", "--dataset", tmp_path)
    err = capsys.readouterr().err
    assert stop.value.code == 1 and len(err.splitlines()) == 1
    assert err.startswith("calibrate.py: ") and str(tmp_path / "none") in err


def test_an_unknown_option_is_one_line(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "calibrate", "--model_name_or_path", "m", "--dataset", "d", "--splitt", "dev")
    err = capsys.readouterr().err
    assert stop.value.code == 1 and len(err.splitlines()) == 1 and "splitt" in err


def test_a_traceback_can_be_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("POPEN_TRACEBACK", "1")
    with pytest.raises(DataError):
        start(monkeypatch, "calibrate", "--model_name_or_path", tmp_path / "none", "--dataset", tmp_path)
