"""The cases of a split of a medical data set, and the true masks of the regions that a segmenter knows."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from popen.data.label_regions import LabelRegions
from popen.data.medical_case import Case, CaseReference
from popen.data.medical_layout import is_layout
from popen.data.medical_sources import read_case_folder
from popen.data.nnunet_raw import read_dataset_json, read_msd, read_nnunet_raw
from popen.data.patient_splits import SPLITS, read_split_part
from popen.data.safe_io import DataError
from popen.medical.configuration import SegmenterConfig


def read_split(
    data: str | Path, split: str, config: SegmenterConfig, patient: str | None = None
) -> Sequence[CaseReference]:
    """The cases of DATA/SPLIT, or of the part Tr or Ts of a DATA with a dataset.json.

    Label maps without a dataset.json have the ids that `popen segment` writes.

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
    if is_layout(root / split):
        return read_case_folder(root / split, LabelRegions(config.regions, config.ids, config.activation), patient)
    raise DataError(
        f"{root / split}: no folder images with masks or labels in it; --data DATA --split NAME reads DATA/NAME, and "
        "--part dev the cases of DATA that recipes/medical.py kept for that"
    )


def read_part(
    data: str | Path, splits: str | Path, part: str, config: SegmenterConfig, patient: str | None = None
) -> Sequence[CaseReference]:
    """The cases of DATA, as the recipe read it, that stand in a part of its splits.json.

    Raises:
        DataError: what `read_split` and `read_split_part` refuse, or a case that is not in DATA.
    """
    wanted = read_split_part(splits, part)
    split = "Tr" if (Path(data) / "dataset.json").is_file() else "."
    found = {own.case_id: own for own in read_split(data, split, config, patient)}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{data}: {len(missing)} cases of {part} in {splits} are not in it, first {missing[0]}; give the "
            "data that the run was trained on"
        )
    return [found[name] for name in wanted]


def read_scored(args: argparse.Namespace, config: SegmenterConfig) -> Sequence[CaseReference]:
    """The cases that the options of an evaluation ask for: a part of the run's splits.json, or a split.

    Raises:
        DataError: a file of parts and none of them, or what the readers refuse.
    """
    if args.part is None:
        if args.splits:
            raise DataError(f"{args.splits}: of its parts none is asked for; add --part dev, or another")
        return read_split(args.data, args.split, config, args.patient)
    return read_part(args.data, args.splits or Path(args.model) / SPLITS, args.part, config, args.patient)


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
