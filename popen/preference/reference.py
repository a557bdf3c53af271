"""The reference model's answers are written when pairs are mined; a fingerprint ties them to model and data."""

import hashlib
from pathlib import Path

from popen.data.safe_io import DataError


def model_fingerprint(folder: str | Path) -> str:
    """sha256 over every safetensors file of a model folder; what is calibrated later does not change it.

    Raises:
        DataError: there are no weights in it.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise DataError(f"{folder}: no .safetensors weights to take a fingerprint of")
    digest = hashlib.sha256()
    for file in weights:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


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
