"""What a medical segmenter is made of, checked when it is written down and when it is read back."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from popen.data.label_regions import LARGEST_ID
from popen.data.safe_io import DataError


@dataclass(frozen=True)
class SegmenterConfig:
    """A network by name, what it looks at, and what it answers; equal configurations build equal networks.

    Args:
        network: a name of `popen.medical.networks.NETWORKS`, or one of your own for a network handed to `Segmenter`.
        spatial_dims: 2 for pictures, 3 for volumes.
        in_channels: C of the pictures, >= 1 (colours, or modalities such as T1, T2, FLAIR).
        regions: the K declared regions, one mask and one logit each. With "softmax" they exclude one another, and the
            first is called "background".
        activation: "sigmoid" where regions are independent (a polyp; ET, TC and WT), "softmax" where they exclude one
            another.
        patch_size: voxels per side that the network is trained on, in the order of the picture's axes.
        dropout: share in [0, 1) that the network's dropout leaves out; 0 builds a network without any.
        threshold: the logit above which a voxel belongs to a mask; with "softmax", what the best region must have over
            the background. Calibrated on held-out cases, 0 by default.
        flips_threshold: the same for predictions averaged over flips; None where nobody calibrated it.
        label_ids: of each region the ids that it has in the data set's label maps; None numbers them by their place,
            from 1, or from 0 with "softmax".
        spacing: millimetres per voxel and axis that pictures are resampled to; None leaves theirs.
        options: keyword arguments of the network's function in `popen.medical.networks`.
    Raises:
        DataError: a value of another type or out of its range; names the field.
    """

    network: str
    spatial_dims: int
    in_channels: int
    regions: tuple[str, ...]
    activation: Literal["sigmoid", "softmax"]
    patch_size: tuple[int, ...]
    dropout: float = 0.0
    threshold: float = 0.0
    spacing: tuple[float, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    flips_threshold: float | None = None
    label_ids: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("regions", "patch_size", "spacing", "label_ids"):
            if isinstance(getattr(self, name), list):  # JSON knows no tuples
                object.__setattr__(self, name, _tuples(getattr(self, name)))
        if not isinstance(self.options, dict):
            raise self._refused("options", "must be a dict of the network's keyword arguments")
        object.__setattr__(self, "options", {str(key): _frozen(key, value) for key, value in self.options.items()})
        if not isinstance(self.network, str) or not self.network:
            raise self._refused("network", "must be a network's name")
        if self.spatial_dims not in (2, 3) or isinstance(self.spatial_dims, bool):
            raise self._refused("spatial_dims", "must be 2 or 3")
        if not _whole(self.in_channels):
            raise self._refused("in_channels", "must be a whole number of at least 1")
        self._check_regions()
        if not self._per_axis(self.patch_size) or not all(map(_whole, self.patch_size)):
            raise self._refused("patch_size", f"must be {self.spatial_dims} whole numbers of at least 1")
        if not _number(self.dropout) or not 0 <= self.dropout < 1:
            raise self._refused("dropout", "must be a share in [0, 1)")
        if not _number(self.threshold):
            raise self._refused("threshold", "must be a finite logit")
        if self.flips_threshold is not None and not _number(self.flips_threshold):
            raise self._refused("flips_threshold", "must be a finite logit, or null")
        self._check_ids()
        if self.spacing is not None and not (
            self._per_axis(self.spacing) and all(_number(mm) and mm > 0 for mm in self.spacing)
        ):
            raise self._refused("spacing", f"must be {self.spatial_dims} millimetres above 0, or null")

    @property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        """The ids of each region in label maps: the data set's where they are known."""
        first = 0 if self.activation == "softmax" else 1
        return self.label_ids or tuple((first + k,) for k in range(len(self.regions)))

    def threshold_of(self, flips: bool) -> float:
        """The threshold of predictions averaged over flips, or of single ones; the latter's where it has no other."""
        return self.threshold if not flips or self.flips_threshold is None else self.flips_threshold

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds; `from_dict` reads it back to an equal configuration."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], name: str) -> "SegmenterConfig":
        """The configuration of a parsed `config.json`; `name` is the file's in errors.

        Raises:
            DataError: a key is missing or unknown, or its value is refused.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise DataError(f"{name}: unknown key {unknown[0]!r}; a segmenter has {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        except TypeError:
            optional = {"dropout", "threshold", "spacing", "options", "flips_threshold", "label_ids"}
            missing = sorted(known - optional - set(values))
            raise DataError(f"{name}: key {missing[0]!r} is missing; write the folder again") from None

    def _check_regions(self) -> None:
        named = isinstance(self.regions, tuple) and all(isinstance(r, str) and r for r in self.regions)
        if not named or not self.regions or len(set(self.regions)) < len(self.regions):
            raise self._refused("regions", "must be one or more names, each once")
        if self.activation not in ("sigmoid", "softmax"):
            raise self._refused("activation", "must be sigmoid or softmax")
        if self.activation == "softmax" and (len(self.regions) < 2 or self.regions[0] != "background"):
            raise self._refused("regions", "must begin with 'background' and go on with another, for softmax")

    def _check_ids(self) -> None:
        if self.label_ids is None:
            return
        whole = isinstance(self.label_ids, tuple) and all(
            isinstance(own, tuple) and own and all(type(i) is int and 0 <= i <= LARGEST_ID for i in own)
            for own in self.label_ids
        )
        if not whole or len(self.label_ids) != len(self.regions):
            raise self._refused(
                "label_ids", f"must be ids from 0 to {LARGEST_ID} for each of {len(self.regions)} regions"
            )

    def _per_axis(self, values: Any) -> bool:
        return isinstance(values, tuple) and len(values) == self.spatial_dims

    def _refused(self, name: str, reason: str) -> DataError:
        return DataError(f"{name} {getattr(self, name)!r} {reason}")


def _tuples(values: list) -> tuple:
    return tuple(_tuples(value) if isinstance(value, list) else value for value in values)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _frozen(option: str, value: Any) -> Any:
    """Lists become tuples, so that a configuration equals itself after JSON."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(option, item) for item in value)
    if isinstance(value, dict):
        return {str(key): _frozen(option, item) for key, item in value.items()}
    if value is None or isinstance(value, str | bool) or _number(value):
        return value
    raise DataError(f"option {option!r} is {value!r}; only text, finite numbers, true, false, null and lists of them")
