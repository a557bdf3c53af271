"""A case of a medical data set: a picture in 2-D or 3-D, the masks of its regions, and where it lies in the patient.

Readers hand out references, which are a few paths each; the voxels are read when a case is asked for.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from popen.data.faults import Fault
from popen.data.safe_io import DataError

EMPTY = "empty mask"


@dataclass(frozen=True, eq=False)
class Case:
    """A picture with its masks.

    image_CHW: float32 (C, H, W) or (C, X, Y, Z), as stored and not normalised; a volume lies in RAS+ order.
    masks_KHW: bool (K, H, W) or (K, X, Y, Z), a channel for each region; None where nobody labelled it.
    spacing: size of a pixel or voxel along each axis, mm for volumes and 1 for pictures.
    affine: float (4, 4) from voxels to mm of a volume; None for pictures.
    further_masks: what further annotators drew, each as masks_KHW, which is the first one's.

    Raises DataError where these do not fit together.
    """

    case_id: str
    patient: str
    image_CHW: np.ndarray
    masks_KHW: np.ndarray | None
    spacing: tuple[float, ...]
    affine: np.ndarray | None = None
    further_masks: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        image, masks = self.image_CHW, self.masks_KHW
        if image.dtype != np.float32 or image.ndim not in (3, 4):
            raise DataError(f"{self.case_id}: the picture is {image.dtype} {image.shape}; give float32 (C, *spatial)")
        if masks is not None and (masks.dtype != np.bool_ or masks.shape[1:] != image.shape[1:]):
            raise DataError(
                f"{self.case_id}: masks are {masks.dtype} {masks.shape}; give bool (K, *spatial) on the picture's "
                f"grid {image.shape[1:]}"
            )
        for further in self.further_masks:
            if masks is None or further.dtype != np.bool_ or further.shape != masks.shape:
                raise DataError(
                    f"{self.case_id}: a further annotator's masks are {further.dtype} {further.shape}; give bool of "
                    f"the first one's shape, {None if masks is None else masks.shape}"
                )
        if len(self.spacing) != image.ndim - 1 or not all(0 < step < np.inf for step in self.spacing):
            raise DataError(f"{self.case_id}: spacing {self.spacing}; give a positive number for each spatial axis")


@dataclass(frozen=True, eq=False)
class Examined:
    """What the files of a case hold and all that is wrong with them.

    case: None where an error stands in `faults`.
    ids: of a label map, the ids that occur, ascending.
    grey: of a mask in black and white, how many pixels are neither.
    """

    case: Case | None
    faults: tuple[Fault, ...] = ()
    ids: tuple[int, ...] = ()
    grey: int = 0

    def checked(self) -> Case:
        """The case; DataError with its first fault where it cannot be used."""
        if self.case is None:
            raise DataError(next(fault.what for fault in self.faults if fault.is_error))
        return self.case


class CaseReference(Protocol):
    """The files of a case, which are not read before it is asked for."""

    @property
    def case_id(self) -> str:
        """Its name, once in a data set."""

    @property
    def patient(self) -> str:
        """Whom it shows; cases of a patient must not be spread over splits."""

    def examine(self) -> Examined:
        """Read the files and gather everything that is wrong with them."""

    def load(self) -> Case:
        """Read the case; DataError names the file and the first fault."""


@dataclass(frozen=True)
class Listing:
    """The cases of a split, and what is wrong with its folder: files without a partner, names that do not fit."""

    references: tuple[CaseReference, ...]
    faults: tuple[Fault, ...] = ()

    def checked(self) -> tuple[CaseReference, ...]:
        """The cases; DataError with the first fault of the folder."""
        for fault in self.faults:
            if fault.is_error:
                raise DataError(fault.what)
        return self.references


def empty_mask(path: Path) -> Fault:
    """The warning for a mask without foreground: a structure may be missing, or its label forgotten."""
    return Fault(EMPTY, f"{path}: no foreground; leave the case out unless the structure is missing in it", "", False)


def patient_names(pattern: str | None) -> Callable[[str], str]:
    """How to tell the patient of a case by its name.

    Args:
        pattern: a regular expression with one group, which is the patient; None takes every case for a patient.
    Returns:
        A function from case id to patient, which raises DataError where the pattern does not fit.
    Raises:
        DataError: not a regular expression with one group.
    """
    if pattern is None:
        return lambda case_id: case_id
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"patient pattern {pattern!r}: {error}; give a regular expression with one group") from None
    if compiled.groups != 1:
        raise DataError(f"patient pattern {pattern!r}: {compiled.groups} groups; the patient's name is the one group")

    def patient_of(case_id: str) -> str:
        found = compiled.search(case_id)
        if not found or not found.group(1):
            raise DataError(f"{case_id}: the patient pattern {pattern!r} finds no patient in the name; change it")
        return found.group(1)

    return patient_of


def listed_files(folder: Path, endings: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files of a folder with one of the endings, by stem (the name without that ending), in alphabetical order.

    Raises:
        DataError: no such folder, or a link that leads out of it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path")
    base, found = folder.resolve(), {}
    for file in sorted(folder.iterdir()):
        ending = next((end for end in endings if file.name.lower().endswith(end)), None)
        if ending is None or file.name.startswith("."):
            continue
        if not file.resolve().is_relative_to(base):
            raise DataError(f"{file}: a link leads out of {folder}; copy the file into that folder")
        found.setdefault(file.name[: -len(ending)], []).append(file)
    return found
