"""From a map of label ids to one mask for each region and back.

Regions may share ids, as BraTS has them: the whole tumour is [1, 2, 3], its core [2, 3], the enhancing part [3].
"""

from collections.abc import Mapping, Sequence
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


def declared_regions(names: Sequence[str], activation: str, ids: Sequence[int] | None = None) -> LabelRegions:
    """Regions of one id each, of data without a dataset.json.

    Args:
        names: of the regions; under softmax "background" is put in front where it is not the first.
        ids: of the regions beside the background, 1, 2 … by default.
    Raises:
        DataError: a name twice, another number of ids than of names, or what `read_regions` refuses.
    """
    told = list(names[1:] if activation == "softmax" and names[:1] == [BACKGROUND] else names)
    if len(set(told)) < len(told) or BACKGROUND in told:
        raise DataError(f"regions {list(names)}: give each name once, without {BACKGROUND!r}")
    numbers = list(range(1, len(told) + 1)) if ids is None else list(ids)
    if len(numbers) != len(told):
        raise DataError(
            f"label_ids {numbers}: {len(told)} regions have names; give an id for each of {', '.join(told)}"
        )
    return read_regions({BACKGROUND: 0} | dict(zip(told, numbers, strict=True)), "label_ids", activation)


def label_map(masks: np.ndarray, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """One map of the masks: 0 where no region is, else the id of the regions that hold a pixel.

    Of several ids that mean the same regions the first of their numbers is written. Where no id means just the regions
    of a pixel, the smaller one lies on top, so that a core stays visible in its tumour.

    Args:
        masks: bool (K, *spatial).
        ids: of each region, from 0 to 255, as in `LabelRegions`.
    Returns:
        uint8 (*spatial).
    Raises:
        ValueError: not such masks, or no ids for each of them.
    """
    known = len(masks) == len(ids) and all(len(own) and all(0 <= i <= LARGEST_ID for i in own) for own in ids)
    if masks.dtype != np.bool_ or masks.ndim < 2 or not known:
        raise ValueError(
            f"masks: {masks.dtype} {masks.shape}; give bool (K, *spatial) and ids from 0 to {LARGEST_ID} for each of K"
        )
    holders = {label: [label in own for own in ids] for label in {i for own in ids for i in own}}
    labels = np.zeros(masks.shape[1:], np.uint8)
    for channel in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        labels[masks[channel]] = min(ids[channel], key=lambda label: (sum(holders[label]), label))
    for label in sorted((label for label, held in holders.items() if sum(held) > 1), reverse=True):
        held = np.array(holders[label]).reshape(-1, *(1,) * labels.ndim)
        labels[(masks == held).all(0)] = label
    return labels
