"""Tells the folder of a medical segmenter from others by its config.json alone, without building anything."""

from collections.abc import Mapping
from pathlib import Path

from popen.data.safe_io import read_json

MODEL_TYPE = "popen-segmenter"


def is_segmenter_folder(folder: str | Path) -> bool:
    """Whether a folder's config.json says that a segmenter lies in it; DataError where that file is broken."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        return False
    config = read_json(file, max_bytes=2**24)
    return isinstance(config, Mapping) and config.get("model_type") == MODEL_TYPE
