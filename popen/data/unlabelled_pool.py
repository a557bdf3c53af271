"""Cases that nobody labelled: the test part of a dataset.json, or a folder of pictures or volumes alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from popen.data.label_map_case import LabelMapCase
from popen.data.medical_case import CaseReference, listed_files, patient_names
from popen.data.medical_folders import PICTURES, PictureCase
from popen.data.medical_layout import DATASET_JSON
from popen.data.medical_sources import holds_volumes
from popen.data.nifti import ENDINGS
from popen.data.nnunet_raw import read_dataset_json, read_msd, read_nnunet_raw
from popen.data.safe_io import DataError


def read_unlabelled_cases(folder: str | Path, channels: int, patient: str | None = None) -> Sequence[CaseReference]:
    """The cases of a folder without their labels, whether there are any or not.

    Of a folder with a dataset.json these are its part Ts. Otherwise they lie in images/, or in the folder itself,
    volumes perhaps named `<case>_0000`, `_0001` … for each channel as nnU-Net has them, else one file each.

    Args:
        channels: that every case must have.
        patient: as of `read_image_folder`.
    Raises:
        DataError: no such folder, no pictures, a name that stands twice, or another number of channels.
    """
    root = Path(folder)
    if (root / DATASET_JSON).is_file():
        description = read_dataset_json(root)
        if len(description.channels) != channels:
            raise DataError(
                f"{description.path}: {', '.join(description.channels)}, and the labelled cases have {channels} "
                "channels; give a pool of the same"
            )
        reader = read_msd if description.is_decathlon else read_nnunet_raw
        return [replace(own, label=None) for own in reader(root, "Ts", None, patient)]
    inner = root / "images" if (root / "images").is_dir() else root
    volumes, patient_of = holds_volumes(inner), patient_names(patient)
    endings = ENDINGS if volumes else PICTURES
    found = listed_files(inner, endings)
    if not found:
        raise DataError(f"{inner}: no pictures ({', '.join((*ENDINGS, *PICTURES))}) for the pool; check the folder")
    for files in found.values():
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise DataError(f"{inner}: {names} have one name; remove or rename one")
    by_name = {stem: files[0] for stem, files in sorted(found.items())}
    if volumes and any(stem.endswith("_0000") for stem in by_name):
        cases = _by_channel(by_name, channels, inner)
        return [LabelMapCase(name, patient_of(name), files, None, None) for name, files in cases.items()]
    if volumes:
        return [LabelMapCase(name, patient_of(name), (file,), None, None, channels) for name, file in by_name.items()]
    return [PictureCase(name, patient_of(name), file, None, channels) for name, file in by_name.items()]


def _by_channel(files: Mapping[str, Path], channels: int, folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each case, channel by channel, of names that end in the channel's number."""
    cases: dict[str, dict[int, Path]] = {}
    for stem, file in files.items():
        name = re.fullmatch(r"(.+)_(\d{4})", stem)
        if name is None:
            raise DataError(f"{file}: no channel at the end of the name, as others have it; call it {stem}_0000")
        cases.setdefault(name[1], {})[int(name[2])] = file
    for name, own in cases.items():
        if sorted(own) != list(range(channels)):
            raise DataError(
                f"{folder}: {name} has the channels {sorted(own)}, and the labelled cases have {channels}; give a "
                "pool of the same, or names that do not end as channels do"
            )
    return {name: tuple(own[k] for k in range(channels)) for name, own in cases.items()}
