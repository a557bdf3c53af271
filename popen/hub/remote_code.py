"""A model folder that loads with `trust_remote_code` where popen is not installed.

transformers copies a module and the modules it imports by a dot, all from one folder. So popen's modules are written
side by side, `popen/lvlm/canvas.py` as `lvlm_canvas.py`, with their imports of each other rewritten; nothing else is.
"""

import ast
import shutil
from pathlib import Path

import popen
from popen.data.safe_io import DataError, read_json, write_json
from popen.hub.folder import recognise

ENTRY = "remote_popen"
CLASSES = {
    "AutoConfig": "PopenConfig",
    "AutoModel": "PopenForReasoningSegmentation",
    "AutoModelForImageTextToText": "PopenForReasoningSegmentation",
    "AutoModelForCausalLM": "PopenForReasoningSegmentation",
    "AutoProcessor": "PopenProcessor",
}
# one module for all classes: transformers would load a copy of popen for each module that `auto_map` names
ENTRY_SOURCE = '''"""The classes of popen {version}, for models that load without it. Apache-2.0."""

from .lvlm_configuration_popen import PopenConfig
from .lvlm_modeling_popen import PopenForReasoningSegmentation
from .lvlm_processing_popen import PopenProcessor

__all__ = ["PopenConfig", "PopenForReasoningSegmentation", "PopenProcessor"]
'''
STARTS = ("popen.lvlm.configuration_popen", "popen.lvlm.modeling_popen", "popen.lvlm.processing_popen")


def export_remote_code(model_dir: str | Path, out: str | Path, link: bool = False) -> list[Path]:
    """Writes a model folder with the code it needs; loading it anywhere gives the same answers as popen does.

    Args:
        out: a folder that does not exist yet, or is empty.
        link: links to the weights instead of copying them.
    Returns:
        The modules that were written, in order.
    Raises:
        DataError: `model_dir` is not a popen model, or `out` holds something.
    """
    shared, out = recognise(model_dir), Path(out)
    if shared.kind != "model":
        raise DataError(f"{model_dir}: only a model has code to export; give the folder of a popen model")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for name in shared.files:
        if name.endswith(".py"):
            continue  # of an earlier export
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if link and name.endswith(".safetensors"):
            target.symlink_to((shared.path / name).resolve())
        else:
            shutil.copyfile(shared.path / name, target)
    for name, keys in (("config.json", tuple(CLASSES)), ("processor_config.json", ("AutoProcessor",))):
        mapped = {key: f"{ENTRY}.{CLASSES[key]}" for key in keys}
        write_json(out / name, read_json(out / name) | {"auto_map": mapped})
    written = [out / f"{ENTRY}.py"]
    written[0].write_text(ENTRY_SOURCE.format(version=popen.__version__), encoding="utf-8")
    for module, source in flattened(STARTS).items():
        written.append(out / f"{_flat(module)}.py")
        written[-1].write_text(source, encoding="utf-8")
    return written


def flattened(starts: tuple[str, ...]) -> dict[str, str]:
    """Sources of these modules of popen and of all they import from it, rewritten; sorted by name."""
    found: dict[str, str] = {}
    waiting = list(starts)
    while waiting:
        module = waiting.pop()
        if module not in found:
            source, needed = rewrite(_file(module).read_text(encoding="utf-8"), module)
            found[module] = source
            waiting += needed
    return dict(sorted(found.items()))


def rewrite(source: str, module: str) -> tuple[str, list[str]]:
    """A module's source with its imports from popen made relative, and the modules of popen they need.

    Raises:
        ValueError: an import of a form that has no flat counterpart.
    """
    lines, needed = source.splitlines(keepends=True), []
    nodes = [node for node in ast.walk(ast.parse(source)) if _of_popen(node)]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):  # from below, so that line numbers hold
        if not isinstance(node, ast.ImportFrom) or node.level or node.module == "popen":
            raise ValueError(
                f"{module}:{node.lineno}: `{ast.unparse(node)}`; write `from popen.part.module import name`"
            )
        statements, modules = _relative(node)
        needed += modules
        first, last = node.lineno - 1, node.end_lineno - 1
        indent = lines[first].encode()[: node.col_offset].decode()
        rest = lines[last].encode()[node.end_col_offset :].decode()
        lines[first : last + 1] = [f"\n{indent}".join(statements).join((indent, rest))]
    return "".join(lines), needed


def _relative(node: ast.ImportFrom) -> tuple[list[str], list[str]]:
    """`from popen.a.b import name` to `from .a_b import name`; whole modules need a second statement."""
    names = [ast.unparse(alias) for alias in node.names if not _is_module(f"{node.module}.{alias.name}")]
    statements = [f"from .{_flat(node.module)} import {', '.join(names)}"] if names else []
    needed = [node.module] if names else []
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        if _is_module(whole):
            needed.append(whole)
            # the first is for transformers: it finds the files to copy by this form only
            statements.append(f"from .{_flat(whole)} import __name__ as _{alias.name}")
            statements.append(f"from . import {_flat(whole)} as {alias.asname or alias.name}")
    return statements, needed


def _of_popen(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "popen" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.level > 0 or (node.module or "").split(".")[0] == "popen")


def _file(module: str) -> Path:
    """Where a module or a package of popen has its source."""
    place = Path(popen.__file__).parent.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _is_module(name: str) -> bool:
    return name.count(".") >= 2 and _file(name).is_file()


def _flat(module: str) -> str:
    return "_".join(module.split(".")[1:])
