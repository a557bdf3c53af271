"""The K hypotheses that a run prefers between, on the cases' own grids: how far apart they are, and where."""

from collections.abc import Sequence
from dataclasses import fields
from itertools import count
from pathlib import Path

import torch
from torch import nn

from popen.data.medical_case import Case
from popen.data.safe_io import DataError, read_json
from popen.medical.inference import predict_logits
from popen.medical.mining import Sampler
from popen.medical.pair_choices import PairArguments
from popen.medical.segmenter import Segmenter
from popen.medical.transforms import Preprocessing

FILE = "pairs.json"


def read_pair_arguments(run: str | Path) -> PairArguments:
    """How a run of `recipes/medical.py` made its pairs; DataError where it did not leave that."""
    file = Path(run) / FILE
    if not file.is_file():
        raise DataError(f"{file}: no such file; give the output_dir of recipes/medical.py")
    found, known = read_json(file), {field.name for field in fields(PairArguments)}
    if not isinstance(found, dict) or not found.keys() <= known:
        raise DataError(f"{file}: expected an object with keys of PairArguments; train again")
    return PairArguments(**found)


def hypotheses(
    segmenter: Segmenter, preprocessing: Preprocessing, sampler: Sampler, case: Case, overlap: float
) -> torch.Tensor:
    """Masks of a case by K hypotheses, cut into patches and put together as a prediction is.

    Returns:
        bool (K, R, *spatial) on the case's own grid, R regions without the background.
    """
    settings = segmenter.settings
    picture, record = preprocessing.apply(case)
    device = next(segmenter.parameters()).device
    stacked = _Stacked(segmenter, sampler, case.case_id).eval()
    logits = predict_logits(stacked, picture.to(device), settings.patch_size, overlap)
    own = preprocessing.undo(logits, record).unflatten(0, (-1, len(settings.regions)))
    return segmenter.masks_from(own)[:, 1 if settings.activation == "softmax" else 0 :].cpu()


class _Stacked(nn.Module):
    """A network whose channels are the hypotheses one after another: (B, C, *patch) to (B, K·R, *patch)."""

    def __init__(self, segmenter: Segmenter, sampler: Sampler, name: str):
        super().__init__()
        self.segmenter, self.sampler, self.name, self.patches = segmenter, sampler, name, count()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        names: Sequence[str] = [f"{self.name}@{next(self.patches)}" for _ in pictures]
        return self.sampler(self.segmenter, pictures, names).float().flatten(1, 2)
