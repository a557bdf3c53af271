"""Loads what others shared, from the Hub or from a folder: adapters, preference sets, data sets.

Models come by `from_pretrained`, or by `popen.lvlm.loading.load_model`. Only safetensors, Arrow and JSON are fetched.
"""

from pathlib import Path

from datasets import Dataset
from huggingface_hub import snapshot_download
from tqdm.auto import tqdm

from popen.data.safe_io import DataError, read_json
from popen.data.schema import content_fingerprint, load_split
from popen.hub.folder import FILES, SPLIT
from popen.hub.preference_sets import read_preferences
from popen.preference.reference import check_fingerprint, model_fingerprint


def load_adapter(name_or_path: str | Path, base: str | Path | None = None, revision: str | None = None):
    """A popen model with a PEFT adapter on it, ready to answer, and its processor.

    Args:
        base: folder or Hub id of the base model; by default the one that the adapter names.
    Raises:
        DataError: no adapter there, pickled weights only, or one that was made for another architecture.
    """
    from popen.lvlm.adapters import base_of, with_adapter
    from popen.lvlm.loading import load_model

    folder = _fetched(name_or_path, "model", FILES["adapter"], revision)
    base = str(base or base_of(folder, str(name_or_path)))
    model, processor = load_model(base)
    return with_adapter(model, folder, str(name_or_path), base).eval(), processor


def load_preferences(
    name_or_path: str | Path,
    revision: str | None = None,
    model: str | Path | None = None,
    rows: Dataset | None = None,
) -> tuple[Dataset, Dataset, dict]:
    """P_t, P_s and the mining report, checked by schema and fingerprint.

    Args:
        model: folder of the model that is to be tuned; it must be the mined one.
        rows: split of the data set that is to be trained on; it must be the mined one.
    Raises:
        DataError: no preference set there, one that was changed, or one of another model or data set.
    """
    text, seg, report = read_preferences(_fetched(name_or_path, "dataset", FILES["preferences"], revision))
    if model is not None:
        check_fingerprint(report["model"], model_fingerprint(model), "model", name_or_path)
    if rows is not None:
        check_fingerprint(report["data"], rows._fingerprint, "data set", name_or_path)
    return text, seg, report


def load_rows(name_or_path: str | Path, split: str, revision: str | None = None) -> Dataset:
    """A split of a data set in popen's schema; every row is checked, and that they are the rows that were written.

    Raises:
        DataError: no such data set or split, other columns, a bad row, or rows that were changed.
    """
    described = [f"*/{name}" for name in SPLIT[1:]]  # of every split, so that a wrong name can be told the right ones
    folder = _fetched(name_or_path, "dataset", (*described, f"{split}/{SPLIT[0]}"), revision)
    rows = load_split(folder, split)
    written = read_json(folder / split / SPLIT[1]).get("_fingerprint")
    found = content_fingerprint(tqdm(rows, desc=f"checking {name_or_path}", unit="row"))
    if found != written:
        raise DataError(
            f"{name_or_path}: split {split!r} has fingerprint {found}, written was {written}: the rows were changed; "
            "fetch it again, or ask its author"
        )
    return rows


def _fetched(name_or_path: str | Path, repo_type: str, files: tuple[str, ...], revision: str | None) -> Path:
    """The folder itself, or these files of a repository in the Hub's cache on this machine."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise DataError(f"{name}: no such folder, and it does not look like a Hub id (owner/name)")
    try:
        return Path(snapshot_download(name, repo_type=repo_type, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # httpx, hf_xet and huggingface_hub each have their own
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: no such folder, nor a {repo_type} on the Hub within reach ({reason})") from error
