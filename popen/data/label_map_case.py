"""A case of one file or several for the picture and one map of label ids: NIfTI volumes, or PNG in two dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popen.data.faults import Fault
from popen.data.label_regions import LabelRegions
from popen.data.medical_case import Case, Examined, Listing, empty_mask, patient_names
from popen.data.medical_folders import paired_files
from popen.data.nifti import ENDINGS, Volume, grid_difference, is_nifti, read_label_volume, read_volume
from popen.data.safe_io import DataError, read_label_png


@dataclass(frozen=True)
class LabelMapCase:
    """The files of a picture, channel by channel, and its label map; without one the case is unlabelled.

    regions: None where nobody declared them; then every id above 0 is foreground.
    channels_in_file: how many channels a single file holds along its fourth axis.
    """

    case_id: str
    patient: str
    pictures: tuple[Path, ...]
    label: Path | None
    regions: LabelRegions | None
    channels_in_file: int = 1

    def examine(self) -> Examined:
        """Read all files, compare their grids and the ids with the declared ones."""
        faults: list[Fault] = []
        parts, labels = [], None
        for path in self.pictures:
            try:
                parts.append((path, _read_picture(path, self.channels_in_file)))
            except DataError as error:
                faults.append(Fault("bad file", str(error)))
        if self.label is not None:
            try:
                labels, grid = _read_labels(self.label)
                parts.append((self.label, grid))
            except DataError as error:
                faults.append(Fault("bad file", str(error)))
        for path, part in parts[1:]:
            wrong = _difference(parts[0][1], part)
            if wrong:
                what = f"{path}: {wrong} ({parts[0][0].name}); bring them onto one grid"
                faults.append(Fault("grid differs", what))
        ids = () if labels is None else tuple(int(i) for i in np.unique(labels))
        unknown = [i for i in ids if i < 0] if self.regions is None else self.regions.unknown(ids)
        if unknown:
            declared = "ids of 0 and above" if self.regions is None else sorted(self.regions.declared)
            what = f"{self.label}: label ids {unknown[:20]} beside the declared {declared}; relabel or declare them"
            faults.append(Fault("unknown labels", what))
        if faults:
            return Examined(None, tuple(faults), ids)
        if ids == (0,):
            faults.append(empty_mask(self.label))
        pictures = [part for _, part in parts[: len(self.pictures)]]
        return Examined(self._case(pictures, labels), tuple(faults), ids)

    def load(self) -> Case:
        """Read the case; DataError names the file and the first fault."""
        return self.examine().checked()

    def _case(self, pictures: Sequence[Volume | np.ndarray], labels: np.ndarray | None) -> Case:
        masks = None
        if labels is not None:
            masks = (labels > 0)[None] if self.regions is None else self.regions.masks(labels)
        if isinstance(pictures[0], Volume):
            image = np.concatenate([volume.values_CXYZ for volume in pictures])
            return Case(self.case_id, self.patient, image, masks, pictures[0].spacing, pictures[0].affine)
        return Case(self.case_id, self.patient, np.concatenate(pictures), masks, (1.0, 1.0))


def read_volume_folder(
    folder: str | Path,
    regions: LabelRegions,
    images: str = "images",
    labels: str | None = "labels",
    patient: str | None = None,
) -> Sequence[LabelMapCase]:
    """List the pairs of volume and label map of a folder without a dataset.json, paired by name.

    Args:
        regions: what the ids mean.
        images, labels: subfolders; labels None is a pool without labels.
        patient: regular expression with one group, the patient's name in a file name.
    Raises:
        DataError: no such folder, no volumes, a file without its partner, or a name that stands twice.
    """
    return list_volume_folder(folder, regions, images, labels, patient).checked()


def list_volume_folder(
    folder: str | Path,
    regions: LabelRegions | None,
    images: str = "images",
    labels: str | None = "labels",
    patient: str | None = None,
) -> Listing:
    """As `read_volume_folder`, with everything that is wrong beside the pairs that are right."""
    patient_of = patient_names(patient)
    pairs, faults = paired_files(Path(folder), images, labels, "", ENDINGS)
    cases = [LabelMapCase(name, patient_of(name), (picture,), label, regions) for name, picture, label in pairs]
    return Listing(tuple(cases), tuple(faults))


def _read_picture(path: Path, channels: int) -> Volume | np.ndarray:
    if is_nifti(path):
        return read_volume(path, channels)
    levels = read_label_png(path).astype(np.float32)  # the numbers as they stand, grey or RGB
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1).copy()


def _read_labels(path: Path) -> tuple[np.ndarray, Volume | np.ndarray]:
    """The ids, and what their grid is compared by."""
    if is_nifti(path):
        return read_label_volume(path)
    labels = read_label_png(path)
    if labels.ndim != 2:
        raise DataError(f"{path}: labels in colour; save ids as 8-bit grey")
    return labels.astype(np.int32), labels[None]


def _difference(first: Volume | np.ndarray, other: Volume | np.ndarray) -> str | None:
    if isinstance(first, Volume) and isinstance(other, Volume):
        return grid_difference(first, other)
    sizes = [part.values_CXYZ.shape[1:] if isinstance(part, Volume) else part.shape[1:] for part in (other, first)]
    return None if sizes[0] == sizes[1] else f"size {sizes[0]}, the picture's is {sizes[1]}"
