"""Folders of pictures and masks in PNG or JPEG, paired by the name without its ending: `images/a.jpg`, `masks/a.png`.

A mask is in black and white. Saved as JPEG it has grey pixels around every edge: above 127 counts as white, and those
that are neither are counted. Where several people drew the same pictures, `masks` are the first one's, the senior's,
and `masks_2`, `masks_3` … those of the others, each with a mask for every picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popen.data.faults import Fault
from popen.data.medical_case import Case, Examined, Listing, empty_mask, listed_files, patient_names
from popen.data.safe_io import DataError, read_image

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
THRESHOLD = 127
MOST_COLOUR = 48  # between the channels of a grey pixel, after JPEG


@dataclass(frozen=True)
class PictureCase:
    """A picture and its black-and-white mask, by file; without a mask the case is unlabelled.

    further: the masks of further annotators.
    background: what is not foreground is a region too, the first one, as a softmax needs it.
    """

    case_id: str
    patient: str
    picture: Path
    mask: Path | None
    channels: int = 3
    further: tuple[Path, ...] = ()
    background: bool = False

    def examine(self) -> Examined:
        """Read all files; the picture is float32 (channels, H, W) from 0 to 255, the mask bool (1 or 2, H, W)."""
        image_CHW = None
        faults, masks, grey = [], [], 0
        try:
            image_CHW = picture_array(self.picture, self.channels)
        except DataError as error:
            faults.append(Fault("bad file", str(error)))
        files = () if self.mask is None else (self.mask, *self.further)
        for file in files:
            try:
                mask_HW, grey_here = read_mask(file)
            except DataError as error:
                faults.append(Fault("bad file", str(error)))
                continue
            masks.append(mask_HW[None])
            grey += grey_here
            if image_CHW is not None and mask_HW.shape != image_CHW.shape[1:]:
                sizes = [f"{width}x{height}" for height, width in (mask_HW.shape, image_CHW.shape[1:])]
                what = f"{file}: {sizes[0]}, its picture {self.picture.name} is {sizes[1]}; export the pair again"
                faults.append(Fault("size differs", what))
        if faults or image_CHW is None:
            return Examined(None, tuple(faults), grey=grey)
        faults += [empty_mask(file) for file, own in zip(files, masks, strict=True) if not own.any()]
        if self.background:
            masks = [np.concatenate([~own, own]) for own in masks]
        first, *further = masks or [None]
        case = Case(self.case_id, self.patient, image_CHW, first, (1.0, 1.0), further_masks=tuple(further))
        return Examined(case, tuple(faults), grey=grey)

    def load(self) -> Case:
        """Read the case; DataError names the file and the first fault."""
        return self.examine().checked()


def picture_array(path: str | Path, channels: int = 3) -> np.ndarray:
    """Read a picture as float32 (C, H, W) from 0 to 255: RGB for 3 channels, luminance for 1; DataError for others."""
    if channels not in (1, 3):
        raise DataError(f"{path}: a picture has 3 channels, or 1 in grey, and {channels} are wanted; give other files")
    image = read_image(path)
    if channels == 1:
        return np.asarray(image.convert("L"), np.float32)[None]
    return np.asarray(image, np.float32).transpose(2, 0, 1).copy()


def read_mask(path: str | Path) -> tuple[np.ndarray, int]:
    """Read a mask in black and white.

    Returns:
        bool (H, W), true above 127, and the number of pixels that are neither black nor white.
    Raises:
        DataError: what `read_image` refuses, a mask in colour, or one that is not black and has nothing above 127.
    """
    levels_HWC = np.asarray(read_image(path), np.int16)
    coloured = int((np.ptp(levels_HWC, axis=2) > MOST_COLOUR).sum())
    if coloured:
        raise DataError(f"{path}: a mask in colour ({coloured} pixels); save each region in black and white")
    levels_HW = levels_HWC.mean(2)
    mask_HW = levels_HW > THRESHOLD
    brightest = round(levels_HW.max())
    if not mask_HW.any() and brightest and (levels_HW == levels_HW.round()).all() and len(np.unique(levels_HW)) == 2:
        raise DataError(
            f"{path}: holds 0 and {brightest}, and only above {THRESHOLD} is foreground; save it as 0 and 255"
        )
    return mask_HW, int(((levels_HW > 0) & (levels_HW < 255)).sum())


def read_image_folder(
    folder: str | Path,
    images: str = "images",
    masks: str | None = "masks",
    mask_suffix: str = "",
    patient: str | None = None,
    channels: int = 3,
    further: Sequence[str] = (),
    background: bool = False,
) -> Sequence[PictureCase]:
    """List the pairs of picture and mask of a folder.

    Args:
        images, masks: subfolders, "." for the folder itself; masks None is a pool without labels.
        mask_suffix: what the stem of a mask has beyond its picture's, as "_mask". Where both lie in one folder,
            pictures are those that have a mask.
        patient: regular expression with one group, the patient's name in a stem; every case is a patient by default.
        channels: 3 for RGB, 1 for luminance.
        further: subfolders with the masks of further annotators, named as `masks` are.
        background: give masks of two regions, of which the first is what is not foreground.
    Raises:
        DataError: no such folder, no pairs, a file without its partner, or a name that stands twice.
    """
    return list_image_folder(folder, images, masks, mask_suffix, patient, channels, further, background).checked()


def list_image_folder(
    folder: str | Path,
    images: str = "images",
    masks: str | None = "masks",
    mask_suffix: str = "",
    patient: str | None = None,
    channels: int = 3,
    further: Sequence[str] = (),
    background: bool = False,
) -> Listing:
    """As `read_image_folder`, with everything that is wrong beside the pairs that are right."""
    root, patient_of = Path(folder), patient_names(patient)
    pairs, faults = paired_files(root, images, masks, mask_suffix, PICTURES)
    others: dict[str, list[Path]] = {name: [] for name, *_ in pairs}
    for folder_name in further:
        theirs, wrong = paired_files(root, images, folder_name, mask_suffix, PICTURES)
        faults += [fault for fault in wrong if fault not in faults]
        for name, _, mask in theirs:
            others.setdefault(name, []).append(mask)
    cases = [
        PictureCase(name, patient_of(name), *files, channels, tuple(others[name]), background)
        for name, *files in pairs
    ]
    return Listing(tuple(cases), tuple(faults))


def further_annotators(folder: str | Path) -> tuple[str, ...]:
    """The subfolders `masks_2`, `masks_3` … that are there; DataError where one between them is missing."""
    names = [file.name for file in Path(folder).glob("masks_*") if file.is_dir() and file.name[6:].isdecimal()]
    wanted = [f"masks_{number}" for number in range(2, len(names) + 2)]
    for name in wanted:
        if name not in names:
            raise DataError(f"{folder}: {', '.join(sorted(names))} and no {name}; number further annotators from 2 on")
    return tuple(wanted)


def paired_files(
    root: Path, images: str, masks: str | None, mask_suffix: str, endings: tuple[str, ...]
) -> tuple[list[tuple[str, Path, Path | None]], list[Fault]]:
    """Pair the files of two folders by stem.

    Returns:
        (stem, picture, mask) in alphabetical order, and faults for names that stand twice or have no partner.
    Raises:
        DataError: no such folder, or no picture in it.
    """
    pictures = listed_files(root / images, endings)
    if masks is None:
        partners: dict[str, list[Path]] = {}
    else:
        found = listed_files(root / masks, endings)
        partners = {
            stem.removesuffix(mask_suffix): files for stem, files in found.items() if stem.endswith(mask_suffix)
        }
    faults = []
    if masks is not None and (root / images).resolve() == (root / masks).resolve():
        if not mask_suffix:
            raise DataError(f"{root}: pictures and masks in one folder; give the suffix that masks have")
        pictures = {stem: files for stem, files in pictures.items() if stem in partners}
    for kind in (pictures, partners):
        for files in kind.values():
            if len(files) > 1:
                names = " and ".join(file.name for file in files)
                faults.append(Fault("name twice", f"{files[0].parent}: {names} have one name; remove or rename one"))
    if masks is not None:
        for stem in sorted(pictures.keys() ^ partners.keys()):
            file, where = (pictures[stem][0], masks) if stem in pictures else (partners[stem][0], images)
            other = f"{stem}{mask_suffix}" if stem in pictures else stem
            faults.append(Fault("no partner", f"{file}: no {other} in {where}; add it or remove the file"))
    if not pictures:
        raise DataError(f"{root / images}: no pictures ({', '.join(endings)}); check the folder")
    pairs = [
        (stem, files[0], partners[stem][0] if masks is not None else None)
        for stem, files in sorted(pictures.items())
        if masks is None or stem in partners
    ]
    return pairs, faults
