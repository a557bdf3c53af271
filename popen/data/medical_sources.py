"""The labelled cases of a data set in whichever layout it lies, with the names and the ids of their regions."""

from collections.abc import Sequence
from pathlib import Path

from popen.data.label_map_case import read_volume_folder
from popen.data.label_regions import LabelRegions, declared_regions
from popen.data.medical_case import CaseReference
from popen.data.medical_folders import further_annotators, read_image_folder
from popen.data.medical_layout import DATASET_JSON, MASK_FOLDERS
from popen.data.nifti import is_nifti
from popen.data.nnunet_raw import read_dataset_json, read_msd, read_nnunet_raw
from popen.data.safe_io import DataError


def read_labelled_cases(
    folder: str | Path,
    regions: Sequence[str],
    activation: str,
    patient: str | None,
    annotators: bool,
    label_ids: Sequence[int] | None = None,
) -> tuple[Sequence[CaseReference], LabelRegions]:
    """The cases of a folder with images/ and masks/ or labels/, or of the training part of one with a dataset.json.

    Args:
        regions, label_ids: as of `declared_regions`, for folders without a dataset.json, which has its own.
        activation: sigmoid or softmax. patient: as of `read_image_folder`.
        annotators: read what further annotators drew too.
    Raises:
        DataError: what the reader of the layout refuses.
    """
    if (Path(folder) / DATASET_JSON).is_file():
        description = read_dataset_json(folder, activation)
        reader = read_msd if description.is_decathlon else read_nnunet_raw
        return reader(folder, "Tr", activation, patient), description.regions
    declared = declared_regions(regions, activation, label_ids)
    return read_case_folder(folder, declared, patient, annotators), declared


def read_case_folder(
    folder: str | Path, regions: LabelRegions, patient: str | None = None, annotators: bool = False
) -> Sequence[CaseReference]:
    """The cases of images/ with masks/ or labels/: label maps in NIfTI, or one mask of each picture.

    Args:
        regions: what the ids mean; of pictures one beside the background.
        patient: as of `read_image_folder`. annotators: read what further annotators drew too.
    Raises:
        DataError: what the reader of the layout refuses, several regions of pictures, or annotators of volumes.
    """
    root = Path(folder)
    masks = next((name for name in MASK_FOLDERS if (root / name).is_dir()), MASK_FOLDERS[0])
    if holds_volumes(root / "images"):
        if annotators:
            raise DataError(
                f"{folder}: further annotators are read of pictures, and these are volumes; leave them out"
            )
        return read_volume_folder(root, regions, labels=masks, patient=patient)
    background = regions.activation == "softmax"
    if len(regions.names) != (2 if background else 1):
        raise DataError(
            f"{folder}: pictures have one mask each, and the regions are {', '.join(regions.names)}; name one, or "
            "keep several as ids of a label map with a dataset.json"
        )
    further = further_annotators(root) if annotators else ()
    return read_image_folder(root, masks=masks, patient=patient, further=further, background=background)


def holds_volumes(folder: Path) -> bool:
    """Whether there is NIfTI in a folder; none where there is no folder."""
    return folder.is_dir() and any(is_nifti(file) for file in folder.iterdir())
