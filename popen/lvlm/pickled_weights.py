"""Turns a model folder's pickled weights (.bin, .pt) into safetensors; nothing is unpickled on the way."""

import shutil
from pathlib import Path

from safetensors.torch import save_file
from tqdm import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from popen.data.safe_io import DataError, storage_error, write_json
from popen.lvlm.pixellm_release import BinFile

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
BESIDE = ("training_args.bin", "optimizer", "scheduler", "scaler", "rng_state")  # a trainer's own, no weights
KEPT = ("*.json", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*")  # configuration and words


def pickled_weights(folder: Path) -> list[Path]:
    """The files with a folder's pickled weights, whatever a trainer left beside them set aside; none without any."""
    named = sorted(folder.glob("pytorch_model*.bin"))
    return named or [
        file for file in sorted(folder.iterdir()) if file.suffix in PICKLED and not file.name.startswith(BESIDE)
    ]


def way_out(folder: str | Path) -> str:
    """The command that converts the weights of a folder, for error messages."""
    return f"convert them: python recipes/convert_weights.py --source {folder} --output_dir NEW_FOLDER"


def convert_weights(source: str | Path, destination: str | Path) -> list[str]:
    """Writes a folder with the same model in safetensors; needs memory for one file of weights.

    Args:
        source: folder of a model with `pytorch_model.bin`, with its parts, or with one other pickled file.
        destination: a new or empty folder.
    Returns:
        The names of the files of weights that were written.
    Raises:
        DataError: no such folder or weights, several that are no parts of one model, a file that is broken or holds
            other things than tensors, a weight twice, or `destination` is not empty. StorageError: the disk refused.
    """
    source, folder = Path(source), Path(destination)
    if not (source / "config.json").is_file():
        raise DataError(f"{source}: no config.json in it; give the folder of a model")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: already there; give a new folder")
    files = pickled_weights(source)
    if not files:
        raise DataError(f"{source}: no pickled weights ({', '.join(PICKLED)}) in it; there is nothing to convert")
    if len(files) > 1 and not files[0].name.startswith("pytorch_model"):
        raise DataError(f"{source}: {files[0].name} and {files[1].name} are not parts of one model; remove one")
    opened = [BinFile(file) for file in files]
    written = [SAFE_WEIGHTS_NAME] if len(files) == 1 else [_renamed(file) for file in files]
    places: dict[str, str] = {}
    for part, name in zip(opened, written, strict=True):
        for weight in part.shapes:
            if weight in places:
                raise DataError(f"{part.path}: {weight} is in another file, too; fetch the model again")
            places[weight] = name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, name in zip(tqdm(opened, desc="converting", unit="file"), written, strict=True):
            tensors = {weight: part.tensor(weight).contiguous() for weight in part.shapes}
            save_file(tensors, folder / name, metadata={"format": "pt"})
        if len(files) > 1:
            write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {}, "weight_map": places})
        for file in {file for pattern in KEPT for file in source.glob(pattern)}:
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
    except OSError as error:
        raise storage_error(error, folder, "the folder is incomplete") from error
    return written


def _renamed(file: Path) -> str:
    """pytorch_model-00001-of-00002.bin is model-00001-of-00002.safetensors."""
    return file.stem.replace("pytorch_model", "model") + ".safetensors"
