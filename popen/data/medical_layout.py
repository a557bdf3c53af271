"""Which folders are medical data sets, told by the names in them alone."""

from pathlib import Path

DATASET_JSON = "dataset.json"
MASK_FOLDERS = ("masks", "labels")


def is_layout(folder: Path) -> bool:
    """Whether a folder holds cases: a dataset.json, or images/ with masks/ or labels/."""
    described = (folder / DATASET_JSON).is_file()
    return described or ((folder / "images").is_dir() and any((folder / name).is_dir() for name in MASK_FOLDERS))


def is_medical(path: str | Path) -> bool:
    """Whether a folder, or one directly in it, holds cases."""
    root = Path(path)
    return root.is_dir() and (is_layout(root) or any(is_layout(sub) for sub in root.iterdir() if sub.is_dir()))
