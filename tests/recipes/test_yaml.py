"""Every YAML that is shipped is read by its own recipe; every command in a docstring can be found."""

import importlib.util
import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from trl import TrlParser

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "recipes"
YAMLS = sorted(RECIPES.glob("*.yaml"))
SCRIPTS = sorted(RECIPES.glob("*.py"))


def recipe(name):
    """A recipe as a module, loaded by its path."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments_of(name):
    """The dataclasses that a recipe's `main` takes, in order: what it gives to TrlParser."""
    parameters = inspect.signature(recipe(name).main).parameters.values()
    return tuple(p.annotation for p in parameters if is_dataclass(p.annotation))


def recipe_of(file):
    """`preference_head_tiny.yaml` belongs to `preference_head.py`, `demo.yaml` to `path.py`."""
    named = [script.stem for script in SCRIPTS if file.stem.startswith(script.stem)]
    return max(named, key=len) if named else {"demo": "path"}[file.stem]


def parse(name, *argv):
    return TrlParser(arguments_of(name)).parse_args_and_config([str(a) for a in argv])


def needed(file):
    """What a YAML leaves to the command line: where the photographs are; and that this machine need have no GPU."""
    if file.stem.startswith(("align_", "sft_", "preference_")) and file.stem.endswith(("_7b", "_smol")):
        return ("--use_cpu", "true")
    return ("--panoptic", "photographs") if file.stem == "path_coco" else ()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_there_are_yamls():
    assert {"sft_tiny", "mine_tiny", "preference_tiny"} <= {file.stem for file in YAMLS}


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_a_shipped_yaml_is_read_whole(file):
    """Each key arrives at the dataclass that has it, with the value in the file."""
    import yaml

    written = yaml.safe_load(file.read_text())
    parsed = parse(recipe_of(file), "--config", file, *needed(file))
    for key, value in written.items():
        if f"--{key}" in needed(file):
            continue
        owner = next(part for part in parsed if key in {f.name for f in fields(part)})
        found = getattr(owner, key)
        found = getattr(found, "value", found)
        if key == "report_to":  # transformers reads it as a list
            found = found[0] if found else "none"
        assert found == value, key


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_an_unknown_key_is_named(file, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(file.read_text() + "\nlerning_rate: 1.0\n")
    with pytest.raises(ValueError, match="lerning_rate"):
        parse(recipe_of(file), "--config", wrong, *needed(file))


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_an_unknown_option_is_named(file):
    with pytest.raises(ValueError, match="lerning_rate"):
        parse(recipe_of(file), "--config", file, *needed(file), "--lerning_rate", "1")


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.stem)
def test_the_command_line_wins(file):
    name = recipe_of(file)
    plain = parse(name, "--config", file, *needed(file))
    changed = parse(name, "--config", file, *needed(file), "--output_dir", "my/run", "--seed", "7")
    before, after = (
        {f.name: getattr(part, f.name) for part in parts for f in fields(part)} for parts in (plain, changed)
    )
    assert before["output_dir"] != "my/run" and before["seed"] != 7
    assert (after["output_dir"], after["seed"]) == ("my/run", 7)
    assert after["model_name_or_path"] == before["model_name_or_path"]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--panoptic", "a", "--scenes", "1", "2", "3", "4"),
        ("--scenes", "1", "2", "3"),
        ("--panoptic", "a", "--ensemble", "0"),
    ],
    ids=["no data", "two sources", "three numbers", "no hypotheses"],
)
def test_a_path_that_leads_nowhere_is_refused(options):
    with pytest.raises(ValueError) as refusal:
        parse("path", "--output_dir", "x", "--model_name_or_path", "m", *options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["sft", "preference"])
@pytest.mark.parametrize("how", ["yaml", "command line"])
def test_resume_can_be_asked_for(name, how, tmp_path):
    file = tmp_path / "resume.yaml"
    shipped = (RECIPES / f"{name}_tiny.yaml").read_text()
    file.write_text(shipped + ("\nresume_from_checkpoint: true\n" if how == "yaml" else ""))
    options = () if how == "yaml" else ("--resume_from_checkpoint", "true")
    training = parse(name, "--config", file, *options)[1]
    assert recipe(name).resume_path(training) is None  # nothing there yet: a fresh start
    whole = Path(training.output_dir) / "checkpoint-5"
    whole.mkdir(parents=True)
    for needed in ("popen_processor.json", "trainer_state.json"):
        (whole / needed).write_text("{}")
    assert recipe(name).resume_path(training) == str(whole)


@pytest.mark.parametrize("how", ["yaml", "command line"])
def test_several_data_sets_at_given_rates(how, tmp_path):
    file = RECIPES / "sft_tiny.yaml"
    options = ("--dataset", "a", "b", "--rates", "9", "0.5")
    if how == "yaml":
        lines = [line for line in file.read_text().splitlines() if not line.startswith("dataset:")]
        file, options = tmp_path / "mixed.yaml", ()
        file.write_text("\n".join([*lines, "dataset: [a, b]", "rates: [9, 0.5]"]))
    script = parse("sft", "--config", file, *options)[0]
    assert (script.dataset, script.rates) == (["a", "b"], [9, 0.5])


def test_the_cut_is_trained_on_what_its_results_name():
    """docs/results/smol.md: street scenes and photographs for alignment and SFT, street scenes for preferences."""
    import yaml

    steps = {
        step: yaml.safe_load((RECIPES / f"{step}_smol_cut.yaml").read_text())
        for step in ("align", "sft", "mine", "preference")
    }
    assert steps["align"]["dataset"] == steps["sft"]["dataset"] == ["runs/camvid", "runs/coco"]
    assert steps["mine"]["dataset"] == steps["preference"]["dataset"] == "runs/camvid"
    shown = [line for line in (ROOT / "docs" / "results" / "smol.md").read_text().splitlines() if "recipes/" in line]
    init = next(line for line in shown if line.startswith("python recipes/smol.py"))
    assert init in (RECIPES / "align_smol_cut.yaml").read_text()
    assert not [line for line in shown if "--dataset" in line and "_smol_cut.yaml" in line]


@pytest.mark.parametrize("option", ["candidates", "max_new_tokens"])
def test_mining_needs_at_least_one(option):
    with pytest.raises(ValueError, match=f"{option} = 0"):
        parse("mine", "--config", RECIPES / "mine_tiny.yaml", f"--{option}", "0")


@pytest.mark.parametrize("file", [*SCRIPTS, *YAMLS], ids=lambda file: file.name)
def test_commands_that_are_shown_name_files_that_exist(file):
    text = file.read_text()
    shown = text if file.suffix == ".yaml" else (inspect.cleandoc(text.split('"""')[1]))
    named = re.findall(r"\b(?:recipes|data_tools|eval)/\w+\.(?:py|yaml)\b|\baccelerate_config\.yaml\b", shown)
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_every_argument_has_a_help_line(file):
    for kind in arguments_of(file.stem):
        own = [f for f in fields(kind) if f.name in inspect.get_annotations(kind)]
        assert own and all(f.metadata.get("help") for f in own), kind
