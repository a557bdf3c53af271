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
