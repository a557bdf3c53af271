"""The reference model's answers are written when pairs are mined; a fingerprint ties them to model and data."""

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download

from popen.data.safe_io import DataError, read_json


def model_fingerprint(name_or_path: str | Path) -> str:
    """sha256 over every safetensors file of a model folder; what is calibrated later does not change it.

    A repository on the Hub counts as its folder in the cache; that of an adapter counts with its base model.

    Raises:
        DataError: there are no weights in it.
    """
    folder = _folder(name_or_path)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise DataError(f"{name_or_path}: no .safetensors weights to take a fingerprint of")
    digest = hashlib.sha256()
    for file in weights:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        digest.update(model_fingerprint(read_json(adapter)["base_model_name_or_path"]).encode())
    return digest.hexdigest()


def _folder(name_or_path: str | Path) -> Path:
    """The folder itself, or what the Hub's cache on this machine holds of a repository, fetched if need be."""
    name = str(name_or_path)
    if Path(name).is_dir() or name.startswith((".", "/")) or name.count("/") != 1:
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "adapter_config.json"]))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: no such folder, nor a model on the Hub within reach ({reason})") from error


def check_reference(report: dict, name_or_path: str | Path, where: str | Path) -> None:
    """Refuses the reference's numbers of another model than the one that is to be tuned.

    Args:
        report: of mining, with the fingerprint of the model and, in reports of today, its name.
        where: the folder of the preferences.
    Raises:
        DataError: the fingerprints differ; names both models and the ways out.
    """
    mined, given = report["model"], model_fingerprint(name_or_path)
    if mined != given:
        raise DataError(
            f"{where}: its reference numbers are of model {report.get('model_name', 'unnamed')} ({mined[:12]}), "
            f"this model is {name_or_path} ({given[:12]}); give the model that was mined, mine again, "
            "or compute the reference with reference: live"
        )


def check_fingerprint(mined: str, given: str, what: str, where: str | Path) -> None:
    """Refuses preferences that were mined from another model or data set; `what` is "model" or "data set".

    Raises:
        DataError: the fingerprints differ.
    """
    if mined != given:
        raise DataError(
            f"{where}: mined from {what} {mined[:12]}, this one is {given[:12]}; "
            f"give the {what} that was mined, or mine again"
        )
