"""Segments one file with a saved segmenter: NIfTI labels on the input's own grid, or an overlay of a picture."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from popen.data.label_regions import label_map
from popen.data.medical_case import Case
from popen.data.medical_folders import picture_array
from popen.data.nifti import Volume, grid_difference, is_nifti, read_volume, write_label_volume
from popen.data.safe_io import DataError
from popen.medical.inference import predict_logits
from popen.medical.transforms import Preprocessing


@dataclass(frozen=True, eq=False)
class Segmented:
    """The masks bool (K, *spatial) of a file on its own grid with the names of the regions.

    ids: of each region in label maps, as the data set has them.
    volume: the NIfTI input, for its grid; None for a picture.
    """

    masks: np.ndarray
    regions: tuple[str, ...]
    activation: str
    ids: tuple[tuple[int, ...], ...]
    case: Case
    volume: Volume | None

    def lines(self) -> list[str]:
        """How much of the picture each region takes, and in NIfTI how many millilitres."""
        told = []
        for name, mask in zip(self.regions[-len(self.foreground) :], self.foreground, strict=True):
            volume = f", {mask.sum() * np.prod(self.case.spacing) / 1000:.2f} ml" if self.volume is not None else ""
            told.append(f"  {name}: {mask.mean():.2%} of the picture{volume}")
        return told

    @property
    def foreground(self) -> list[np.ndarray]:
        """The masks without the background's."""
        return list(self.masks[1:] if self.activation == "softmax" else self.masks)

    def write_labels(self, path: str | Path) -> None:
        """Write NIfTI labels on the grid of the input, numbered as `label_map` says.

        Raises:
            DataError: the input was a picture.
            StorageError: the disk refused.
        """
        if self.volume is None:
            raise DataError(f"{path}: the input is a picture and no volume; draw its masks over it")
        write_label_volume(path, label_map(self.masks, self.ids), self.volume)


def output_path(path: str | Path, wanted: str | Path | None = None) -> Path:
    """Where the result of a file goes: beside it by default; DataError for an ending that cannot hold it."""
    endings = (".nii.gz", ".nii") if is_nifti(path) else (".png",)
    if wanted is None:
        name = re.sub(r"(\.nii(\.gz)?|\.[^.]*)$", "", Path(path).name, flags=re.IGNORECASE)
        return Path(path).with_name(f"{name}-popen{endings[0]}")
    if not str(wanted).lower().endswith(endings):
        raise DataError(f"{wanted}: {Path(path).name} gives a {' or '.join(endings)} file; give -o such a name")
    return Path(wanted)


def load_segmenter(folder: str | Path) -> tuple[nn.Module, Preprocessing]:
    """A saved segmenter in eval mode and how its pictures are prepared; DataError where either is missing."""
    from popen.medical.segmenter import Segmenter  # builds networks of several packages, and takes its seconds

    preprocessing = Preprocessing.from_pretrained(folder)
    return Segmenter.from_pretrained(folder).eval(), preprocessing


def segment_case(
    segmenter: nn.Module,
    preprocessing: Preprocessing,
    case: Case,
    overlap: float = 0.5,
    flips: tuple[int, ...] = (),
    progress: bool = False,
) -> np.ndarray:
    """Masks bool (K, *spatial) of a case on its own grid; arguments as of `predict_logits`."""
    picture, record = preprocessing.apply(case)
    device = next(segmenter.parameters()).device
    logits = predict_logits(segmenter, picture.to(device), segmenter.settings.patch_size, overlap, flips, progress)
    own = preprocessing.undo(logits, record)
    with torch.no_grad():
        return segmenter.masks_from(own[None], bool(flips))[0].cpu().numpy()


def segment_file(path: str | Path, segmenter: nn.Module, preprocessing: Preprocessing) -> Segmented:
    """Segment a NIfTI volume or a picture.

    Args:
        path: of a network with several channels, one 4-D file, or the first (`_0000`) of files beside one another.
    Raises:
        DataError: a file that cannot be used, or one of other dimensions or channels than the network's.
    """
    config = segmenter.settings
    dims = 3 if is_nifti(path) else 2
    if dims != config.spatial_dims:
        raise DataError(f"{path}: a {dims}-D input, and the network is {config.spatial_dims}-D; give it another file")
    if dims == 2:
        volume = None
        case = Case(Path(path).name, "", picture_array(path, config.in_channels), None, (1.0, 1.0))
    else:
        volume = _volume(Path(path), config.in_channels)
        case = Case(Path(path).name, "", volume.values_CXYZ, None, volume.spacing, volume.affine)
    masks = segment_case(segmenter, preprocessing, case, progress=True)
    return Segmented(masks, tuple(config.regions), config.activation, config.ids, case, volume)


def _volume(path: Path, channels: int) -> Volume:
    """All channels of an input on one grid."""
    if channels == 1 or not re.search(r"_0000\.nii(\.gz)?$", path.name):
        return read_volume(path, channels)
    files = [path.with_name(re.sub(r"_0000(\.nii(\.gz)?)$", rf"_{k:04d}\1", path.name)) for k in range(channels)]
    parts = [read_volume(file) for file in files]
    for file, part in zip(files[1:], parts[1:], strict=True):
        wrong = grid_difference(parts[0], part)
        if wrong:
            raise DataError(f"{file}: {wrong} ({path.name}); bring them onto one grid")
    return Volume(np.concatenate([part.values_CXYZ for part in parts]), parts[0].affine, parts[0].header)
