"""From a case's own grid to the network's and back: resampled to a spacing, normalised, padded or resized.

Resampling keeps the edges of the picture where they are, so the centre of voxel i of n lies at (i + ½) / n of the way
whatever n is, and going back is the same formula with the sizes exchanged.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from popen.data.medical_case import Case
from popen.data.safe_io import DataError, read_json, write_json

FILE = "preprocessing.json"
Scale = Literal["z-score", "range", "8-bit"]
Fit = Literal["pad", "resize"]


@dataclass(frozen=True)
class GridRecord:
    """What became of a case's own grid: its size, the size resampled, the padding before each axis, the final size."""

    own: tuple[int, ...]
    resampled: tuple[int, ...]
    before: tuple[int, ...]
    final: tuple[int, ...]


@dataclass(frozen=True)
class Preprocessing:
    """How cases become pictures for a network; the same for training and inference, and kept beside the weights.

    size: what a picture measures at least ("pad": zeros on all sides where it is smaller, larger ones stay as they
        are) or exactly ("resize").
    spacing: mm to resample to; None keeps each case's own. Not with "resize".
    scale: "z-score" to mean 0 and deviation 1, "range" from 0 to 1 by minimum and maximum, each for every channel of
        every case; "8-bit" divides by 255.

    Raises DataError where these do not fit together.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    scale: Scale = "z-score"
    fit: Fit = "pad"

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or not all(type(n) is int and n > 0 for n in self.size):
            raise DataError(f"preprocessing: size {self.size}; give 2 or 3 positive whole numbers")
        if self.scale not in get_args(Scale) or self.fit not in get_args(Fit):
            known = f"{', '.join(get_args(Scale))}; fit one of {', '.join(get_args(Fit))}"
            raise DataError(f"preprocessing: scale {self.scale!r}, fit {self.fit!r}; give a scale of {known}")
        if self.spacing is None:
            return
        if self.fit == "resize":
            raise DataError("preprocessing: a spacing, and resizing to one size undoes it; leave one out")
        if len(self.spacing) != len(self.size) or not all(0 < step < math.inf for step in self.spacing):
            raise DataError(f"preprocessing: spacing {self.spacing}; give {len(self.size)} positive numbers")

    def apply(self, case: Case) -> tuple[torch.Tensor, GridRecord]:
        """Make the network's picture of a case.

        Returns:
            float32 (C, *final) and the record that `apply_masks` and `undo` need.
        Raises:
            DataError: a case of another number of dimensions, or one that would be resampled to over 2**28 voxels.
        """
        record = self._record(case)
        image = torch.from_numpy(np.ascontiguousarray(case.image_CHW))
        return _pad(_scaled(_resample(image, record.resampled), self.scale), record), record

    def apply_masks(self, masks: np.ndarray, record: GridRecord) -> torch.Tensor:
        """Bring masks onto the network's grid by the nearest voxel, so that one-hot masks stay one-hot.

        Args:
            masks: bool (K, *own).
        Returns:
            bool (K, *final). In the padding all are false but the first under one-hot masks, the background.
        Raises:
            ValueError: masks of another type or size.
        """
        _check(masks, record.own)
        if masks.dtype != np.bool_:
            raise ValueError(f"masks are {masks.dtype}; give bool")
        given = torch.from_numpy(np.ascontiguousarray(masks))
        one_hot = len(given) > 1 and bool((given.sum(0) == 1).all())
        near = functional.interpolate(given[None].float(), record.resampled, mode="nearest-exact")[0]
        padded = _pad(near, record) > 0.5
        if one_hot:
            padded[0] |= ~padded.any(0)
        return padded

    def undo(self, logits: torch.Tensor, record: GridRecord) -> torch.Tensor:
        """Bring logits, or anything else per voxel, onto the case's own grid.

        Args:
            logits: float (K, *final).
        Returns:
            float32 (K, *own).
        Raises:
            ValueError: logits of another size.
        """
        _check(logits, record.final)
        inner = logits
        for axis, (start, length) in enumerate(zip(record.before, record.resampled, strict=True), 1):
            inner = inner.narrow(axis, start, length)
        return _resample(inner.float(), record.own)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessing.json` into a model folder."""
        write_json(Path(folder) / FILE, asdict(self))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Preprocessing":
        """Read `preprocessing.json` of a model folder; DataError where it is missing or broken."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise DataError(f"{folder}: no {FILE} in it, so how its pictures were prepared is unknown; save it there")
        found = read_json(path, max_bytes=2**16)
        if not isinstance(found, Mapping) or found.keys() != {"size", "spacing", "scale", "fit"}:
            raise DataError(f"{path}: expected size, spacing, scale and fit; save it again")
        if not isinstance(found["size"], list) or not isinstance(found["spacing"], list | None):
            raise DataError(f"{path}: size and spacing must be lists; save it again")
        spacing = found["spacing"]
        if spacing is not None and not all(type(step) in (int, float) for step in spacing):
            raise DataError(f"{path}: spacing must be numbers; save it again")
        return cls(tuple(found["size"]), None if spacing is None else tuple(spacing), found["scale"], found["fit"])

    def _record(self, case: Case) -> GridRecord:
        own = case.image_CHW.shape[1:]
        if len(own) != len(self.size):
            raise DataError(f"{case.case_id}: {len(own)}-D, and the network takes {len(self.size)}-D pictures")
        if self.fit == "resize":
            return GridRecord(own, self.size, (0,) * len(own), self.size)
        steps = zip(own, case.spacing, self.spacing or case.spacing, strict=True)
        resampled = tuple(max(1, round(count * step / wanted)) for count, step, wanted in steps)
        if math.prod(resampled) > 2**28:
            raise DataError(
                f"{case.case_id}: {resampled} voxels at the spacing {self.spacing}; crop it or coarsen that"
            )
        final = tuple(map(max, resampled, self.size))
        return GridRecord(own, resampled, tuple((f - r) // 2 for f, r in zip(final, resampled, strict=True)), final)


def _resample(values: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Linear in each axis; where it shrinks, a voxel is the mean of those it covers (a triangle's, not aliased).

    values: float32 (C, *spatial). Returns (C, *size).
    """
    for axis, wanted in enumerate(size, 1):
        if values.shape[axis] != wanted:
            moved = values.movedim(axis, 1)
            flat = moved.reshape(1, moved.shape[0], moved.shape[1], -1)  # the other axes are one that keeps its size
            flat = functional.interpolate(flat, (wanted, flat.shape[3]), mode="bilinear", antialias=True)
            values = flat.reshape(moved.shape[0], wanted, *moved.shape[2:]).movedim(1, axis)
    return values


def _pad(values: torch.Tensor, record: GridRecord) -> torch.Tensor:
    sides = []
    for final, resampled, before in zip(record.final, record.resampled, record.before, strict=True):
        sides = [before, final - resampled - before, *sides]  # torch counts from the last axis
    return functional.pad(values, sides)


def _scaled(image: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Normalise (C, *spatial); a channel of one value becomes 0 where the scale is its own."""
    if scale == "8-bit":
        return image / 255
    flat = image.flatten(1)
    if scale == "z-score":
        shift, step = flat.mean(1), flat.std(1, correction=0)
    else:
        shift, step = flat.amin(1), flat.amax(1) - flat.amin(1)
    step = torch.where(step > 0, step, 1)
    return ((flat - shift[:, None]) / step[:, None]).view_as(image)


def _check(values: np.ndarray | torch.Tensor, size: tuple[int, ...]) -> None:
    if tuple(values.shape[1:]) != size or values.ndim != len(size) + 1:
        raise ValueError(f"shape {tuple(values.shape)}; give (K, *{size}), the grid of the record")
