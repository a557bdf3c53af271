"""Arrows go one way: the imports of every file, read from its source, nothing executed."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("popen", "recipes", "eval", "data_tools")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
MAY_IMPORT = {
    "objectives": {"objectives"},
    "data": {"data"},
    "distributed": {"distributed"},
    "preference": {"preference", "objectives", "data"},
    "lvlm": {"lvlm", "objectives", "data", "distributed", "preference"},
    "medical": {"medical", "objectives", "data", "preference"},
    "training": {"training", "objectives", "data", "distributed", "preference", "lvlm", "medical"},
}
ON_TOP = {"__init__", "__main__", "hub", "cli", "overlay", "recipe", "errors"}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imported(source: str, module: str) -> set[str]:
    """Full names of everything a module's source imports, also inside functions; `module` resolves relative ones."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, base] if base else parent)
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def imports_of(file: Path) -> set[str]:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return imported(file.read_text(encoding="utf-8"), ".".join(parts))


def part_of(file: Path) -> str:
    """The part of popen that a file is: its folder, or its own name directly under popen."""
    return file.relative_to(ROOT / "popen").parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_follow_the_layers(file):
    roots = {name.split(".")[0] for name in imports_of(file)}
    package = file.relative_to(ROOT).parts[0]
    others = set(PACKAGES) - {"popen", package}
    if package == "recipes":
        others.add("recipes")  # a script reads top to bottom on its own
    assert not roots & (others | {"tests"}), f"{name_of(file)} imports {sorted(roots & others)}"
    if package != "popen" or part_of(file) in ON_TOP:
        return
    allowed = MAY_IMPORT[part_of(file)]
    of_popen = {name.split(".")[1] for name in imports_of(file) if name.startswith("popen.")}
    assert "popen" not in imports_of(file), f"{name_of(file)} imports the whole of popen"
    assert of_popen <= allowed, f"{name_of(file)} imports {sorted(of_popen - allowed)}; it may know {sorted(allowed)}"


def test_every_part_of_popen_has_a_layer():
    parts = {part_of(file) for file in FILES if file.is_relative_to(ROOT / "popen")}
    assert parts <= MAY_IMPORT.keys() | ON_TOP, f"no layer for {sorted(parts - MAY_IMPORT.keys() - ON_TOP)}"


def at_start(file: Path) -> set[str]:
    """Names that a file's source imports when it is imported itself: not in functions, nor for the type checker."""
    found, waiting = set(), list(ast.parse(file.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


def waits_for(start: Path) -> set[str]:
    """Names that a file imports when it starts, and all files of this project that it imports in turn."""
    seen, found, waiting = set(), set(), [start]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        names = at_start(file)
        found |= names
        parents = {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}
        modules = [ROOT.joinpath(*name.split(".")) for name in parents if name.split(".")[0] in PACKAGES]
        waiting += [
            own for path in modules for own in (path.with_suffix(".py"), path / "__init__.py") if own.is_file()
        ]
    return found


TRAINING = {"peft", "accelerate", "deepspeed", "transformers.Trainer", "transformers.TrainingArguments"}


@pytest.mark.parametrize(
    "start, lazy",
    [
        ("popen/lvlm/loading.py", TRAINING | {"trl", "datasets", "pandas"}),
        ("popen/lvlm/segmentation.py", TRAINING | {"trl", "datasets", "pandas"}),
        ("recipes/mine.py", TRAINING),
        ("eval/segmentation.py", TRAINING | {"matplotlib"}),
    ],
)
def test_a_start_waits_for_nothing_that_it_does_not_need(start, lazy):
    """What these libraries import in turn takes seconds; `popen segment` imports the first two when it runs."""
    names = waits_for(ROOT / start)
    assert "torch" in names and any(name.startswith("popen.objectives") for name in names)
    found = {name for name in names for own in lazy if name == own or name.startswith(f"{own}.")}
    assert not found, f"{start} waits for {sorted(found)}; import it in the function that needs it"


@pytest.mark.parametrize("file", [f for f in FILES if f.parent.name == "objectives"], ids=name_of)
def test_objectives_know_torch_only(file):
    roots = {name.split(".")[0] for name in imports_of(file)} - sys.stdlib_module_names
    assert roots <= {"torch", "popen"}
    assert not {"logging", "os", "pathlib"} & {name.split(".")[0] for name in imports_of(file)}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_stay_short(file):
    most = 175 if file.is_relative_to(ROOT / "recipes") else 400
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= most, f"{name_of(file)} has {lines} lines, at most {most}; split it by noun"


def test_nothing_is_called_utils():
    named = [name_of(f) for f in FILES if {"utils", "util", "helpers", "misc"} & set(f.with_suffix("").parts)]
    assert not named


@pytest.mark.parametrize(
    "source, name",
    [
        ("from popen import lvlm", "popen.lvlm"),
        ("import popen.lvlm.tiny as t", "popen.lvlm.tiny"),
        ("def f():\n    from popen.training import sft", "popen.training.sft"),
        ("from . import masks", "popen.objectives.masks"),
        ("from ..data import rle", "popen.data.rle"),
        ("from .masks import bce_loss", "popen.objectives.masks.bce_loss"),
        ("import importlib\nimportlib.import_module('eval.metrics')", "eval.metrics"),
    ],
)
def test_no_kind_of_import_is_overlooked(source, name):
    assert name in imported(source, "popen.objectives.scores")
