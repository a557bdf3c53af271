"""A folder as preference training starts from it: a model, scenes, and what was mined of them."""

from pathlib import Path

import datasets

from popen.data.schema import write_dataset
from popen.lvlm.mining import MiningArguments, mine


def mined_folder(root: Path, model, processor, scenes) -> datasets.Dataset:
    """Writes `model`, `data` with the split train, and `mined`, by embedding noise; the scenes as rows."""
    for part in (model, processor):
        part.save_pretrained(root / "model")
    rows = write_dataset(scenes, root / "data", "train")
    settings = MiningArguments(views="embedding", candidates=4, margin=0.005, embedding_noise=1.0)
    mine(model, processor, rows, range(len(rows)), str(root / "model"), root / "mined", settings)
    return rows
