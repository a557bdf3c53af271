"""The cases of a split of a medical data set, and the true masks of the regions that a segmenter knows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from popen.data.label_map_case import read_volume_folder
from popen.data.label_regions import LabelRegions
from popen.data.medical_case import Case, CaseReference
from popen.data.medical_folders import read_image_folder
from popen.data.nnunet_raw import read_dataset_json, read_msd, read_nnunet_raw
from popen.data.safe_io import DataError
from popen.medical.configuration import SegmenterConfig


def read_split(
    data: str | Path, split: str, config: SegmenterConfig, patient: str | None = None
) -> Sequence[CaseReference]:
    """The cases of DATA/SPLIT, or of the part Tr or Ts of a DATA with a dataset.json.

    Label maps without a dataset.json are numbered as `popen segment` numbers them.

    Args:
        config: of the segmenter, for its regions.
        patient: regular expression with one group, the patient in a case's name; every case is one by default.
    Raises:
        DataError: no such split, or labels that are not the segmenter's regions.
    """
    root = Path(data)
    if (root / "dataset.json").is_file():
        description = read_dataset_json(root, config.activation)
        if description.regions.names != config.regions:
            told, known = (", ".join(names) for names in (description.regions.names, config.regions))
            raise DataError(f"{description.path}: labels {told}, and the model knows {known}; give another model")
        read = read_msd if description.is_decathlon else read_nnunet_raw
        return read(root, split, config.activation, patient)
    folder = root / split
    if (folder / "masks").is_dir():
        return read_image_folder(folder, patient=patient)
    if (folder / "labels").is_dir():
        first = 0 if config.activation == "softmax" else 1
        ids = tuple((first + k,) for k in range(len(config.regions)))
        return read_volume_folder(folder, LabelRegions(config.regions, ids, config.activation), patient=patient)
    raise DataError(f"{folder}: no folder masks or labels in it; --data DATA --split NAME reads DATA/NAME")


def scored_regions(config: SegmenterConfig) -> tuple[str, ...]:
    """All regions but the background."""
    return config.regions[1:] if config.activation == "softmax" else config.regions


def true_masks(case: Case, config: SegmenterConfig) -> np.ndarray:
    """The masks bool (K, *spatial) of the scored regions; DataError where a case has none, or as many as no model."""
    if case.masks_KHW is None:
        raise DataError(f"{case.case_id}: no masks to score against; choose a split with labels")
    count, masks = len(scored_regions(config)), case.masks_KHW
    if config.activation == "softmax" and len(masks) == count + 1:
        masks = masks[1:]
    if len(masks) != count:
        raise DataError(
            f"{case.case_id}: {len(masks)} masks, and the model knows {', '.join(config.regions)}; give another model"
        )
    return masks
