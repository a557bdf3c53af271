"""From a map of label ids to one mask for each region and back.

Regions may share ids, as BraTS has them: the whole tumour is [1, 2, 3], its core [2, 3], the enhancing part [3].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from popen.data.safe_io import DataError

BACKGROUND = "background"
LARGEST_ID = 255


@dataclass(frozen=True)
class LabelRegions:
    """Names of the regions and the label ids that make up each.

    "sigmoid": regions are independent and the background is none of them. "softmax": every pixel is in exactly one
    region, and the first is the background.
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    activation: Literal["sigmoid", "softmax"]

    @property
    def declared(self) -> frozenset[int]:
        """All ids that may stand in a label map."""
        return frozenset({0}.union(*self.ids))

    def unknown(self, found: tuple[int, ...]) -> list[int]:
        """The ids among `found` that no region has."""
        return sorted(set(found) - self.declared)

    def masks(self, labels: np.ndarray) -> np.ndarray:
        """Masks bool (K, *spatial) of a label map, integers (*spatial)."""
        return np.stack([np.isin(labels, ids) for ids in self.ids])


def read_regions(labels: Any, where: str, activation: str | None = None) -> LabelRegions:
    """Read the "labels" of a dataset.json: of nnU-Net v2 {name: id or [ids]}, of the decathlon {id: name}.

    Args:
        where: the file, for errors.
        activation: None takes softmax for several labels that exclude each other, else sigmoid.
    Raises:
        DataError: no background with id 0, no region, an id that is no number from 1 to 255 or stands twice, an
            ignore label, or softmax over regions that overlap.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise DataError(f"{where}: 'labels' must be an object of names and ids; correct it")
    if all(isinstance(key, str) and key.isdecimal() and isinstance(labels[key], str) for key in labels):
        labels = {name: int(key) for key, name in labels.items()}
    named = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
    for name, ids in named.items():
        if not ids or not all(type(i) is int and 0 <= i <= LARGEST_ID for i in ids) or len(set(ids)) < len(ids):
            raise DataError(f"{where}: label {name!r}: {ids}; give ids from 0 to {LARGEST_ID}, each once")
    if "ignore" in named:
        raise DataError(f"{where}: an 'ignore' label, and cases labelled in part are not supported; remove them")
    zero = [name for name, ids in named.items() if 0 in ids]
    if len(zero) != 1 or named[zero[0]] != [0]:
        raise DataError(f"{where}: id 0 must be the background's alone; correct 'labels'")
    regions = {name: tuple(ids) for name, ids in named.items() if name != zero[0]}
    if not regions:
        raise DataError(f"{where}: no label beside the background; name the regions")
    total = sum(len(ids) for ids in regions.values())
    overlap = total != len(set().union(*regions.values()))
    if activation is None:
        activation = "sigmoid" if overlap or len(regions) == 1 else "softmax"
    if activation == "softmax":
        if overlap:
            raise DataError(f"{where}: regions share ids, and a softmax gives each pixel to one; use sigmoid")
        return LabelRegions((BACKGROUND, *regions), ((0,), *regions.values()), "softmax")
    if activation != "sigmoid":
        raise DataError(f"activation {activation!r}: give sigmoid or softmax")
    return LabelRegions(tuple(regions), tuple(regions.values()), "sigmoid")


def label_map(masks: np.ndarray, activation: str) -> np.ndarray:
    """One map of the masks: 0 where no region is, else the number of the region.

    Under softmax the number is the channel, of which 0 is the background. Under sigmoid it is the channel plus 1, and
    where regions overlap the smaller lies on top, so that a core stays visible in its tumour.

    Args:
        masks: bool (K, *spatial).
    Returns:
        uint8 (*spatial).
    Raises:
        ValueError: not such masks, or more of them than 255.
    """
    if masks.dtype != np.bool_ or masks.ndim < 2 or len(masks) >= LARGEST_ID:
        raise ValueError(f"masks: {masks.dtype} {masks.shape}; give bool (K, *spatial) with K under {LARGEST_ID}")
    labels = np.zeros(masks.shape[1:], np.uint8)
    first = 0 if activation == "softmax" else 1
    for channel in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        labels[masks[channel]] = channel + first
    return labels
