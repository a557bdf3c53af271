"""What a folder is that somebody wants to share, told from the files in it; nothing is read but names and JSON."""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from popen.data.safe_io import DataError, read_json

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
Kind = Literal["model", "adapter", "preferences", "dataset"]
TEXTS = ("README.md", "LICENSE*")
PROCESSOR = ("*processor*.json", "*token*.json", "vocab.*", "merges.txt", "tokenizer.model", "*chat_template*")
SPLIT = ("data-*.arrow", "state.json", "dataset_info.json")
# the files of each kind: these are shared, whatever else lies beside them stays at home
FILES: dict[Kind, tuple[str, ...]] = {
    "model": (
        "config.json",
        "generation_config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        *PROCESSOR,
        *TEXTS,
    ),
    "adapter": ("adapter_config.json", "adapter_model.safetensors", *PROCESSOR, *TEXTS),
    "preferences": ("mining.json", *(f"{stream}/{name}" for stream in ("text", "seg") for name in SPLIT), *TEXTS),
    "dataset": (*(f"*/{name}" for name in SPLIT), *TEXTS),
}


@dataclass(frozen=True)
class SharedFolder:
    """A folder of a known kind, the names of its files to share, and of those beside them that stay at home."""

    path: Path
    kind: Kind
    files: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def repo_type(self) -> Literal["model", "dataset"]:
        """The type of repository on the Hub that it belongs to."""
        return "model" if self.kind in ("model", "adapter") else "dataset"


def recognise(folder: str | Path) -> SharedFolder:
    """Tells a model, a PEFT adapter, a preference set and a data set apart.

    Raises:
        DataError: no such folder, none of the four, not whole, or with pickled files anywhere in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give that of a model, an adapter, a preference set or a data set")
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    for name in names:
        if name.lower().endswith(PICKLED):
            raise DataError(
                f"{folder / name}: a pickled file can run code on whoever loads it and is not shared; remove it, "
                "or push a folder that holds only what save_pretrained writes (weights in .safetensors)"
            )
    kind = _kind(folder, names)
    patterns = FILES[kind] + (("*.py",) if kind == "model" and _config(folder).get("auto_map") else ())
    files = tuple(name for name in names if any(_matches(name, pattern) for pattern in patterns))
    return SharedFolder(folder, kind, files, tuple(name for name in names if name not in files))


def _kind(folder: Path, names: list[str]) -> Kind:
    top = {name.split("/")[0] for name in names}
    if "adapter_config.json" in names:
        return _whole(folder, names, "adapter", "adapter_model.safetensors")
    if "config.json" in names:
        architecture = _config(folder).get("model_type")
        if architecture != "popen":
            raise DataError(f"{folder}: a checkpoint of architecture {architecture!r}; only popen models are pushed")
        if not any(_matches(name, "*.safetensors") for name in names):
            raise DataError(f"{folder}: no .safetensors weights in it; train the model first, or copy them there")
        return _whole(folder, names, "model", "popen_processor.json")
    if "mining.json" in names:
        return _whole(folder, names, "preferences", "text/state.json", "seg/state.json")
    if "claim.json" in names:
        raise DataError(f"{folder}: mining was not finished there; run recipes/mine.py again to go on")
    if any(_matches(name, "*/state.json") for name in names):
        return "dataset"
    found = ", ".join(sorted(top)[:5]) or "nothing"
    raise DataError(
        f"{folder}: no popen model (config.json), adapter (adapter_config.json), preference set (mining.json) or "
        f"data set (SPLIT/state.json); there: {found}"
    )


def _whole(folder: Path, names: list[str], kind: Kind, *needed: str) -> Kind:
    for name in needed:
        if name not in names:
            raise DataError(f"{folder}: {name} is missing, so the {kind} cannot be used; write the folder again")
    return kind


def _config(folder: Path) -> dict:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise DataError(f"{folder / 'config.json'}: not an object; give a folder that save_pretrained of popen wrote")
    return config


def _matches(name: str, pattern: str) -> bool:
    """`fnmatch`, but a star stays within its folder."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)
