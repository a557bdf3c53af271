"""The raw layouts of nnU-Net v2 and of the Medical Segmentation Decathlon, both described by a dataset.json.

nnU-Net: `imagesTr/<case>_0000.nii.gz`, `_0001` … for each channel, and `labelsTr/<case>.nii.gz`.
Decathlon: the json lists pairs of files, and several channels are the fourth axis of one file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popen.data.faults import Fault
from popen.data.label_map_case import LabelMapCase
from popen.data.label_regions import LabelRegions, read_regions
from popen.data.medical_case import Listing, listed_files, patient_names
from popen.data.medical_layout import DATASET_JSON
from popen.data.safe_io import DataError, inside, read_json

ENDINGS = (".nii.gz", ".nii", ".png")
PARTS = ("Tr", "Ts")


@dataclass(frozen=True)
class DatasetJson:
    """The checked part of a dataset.json that says what the files are; `content` holds the lists of the decathlon."""

    path: Path
    channels: tuple[str, ...]
    regions: LabelRegions
    ending: str
    is_decathlon: bool
    content: Mapping[str, Any]


def read_nnunet_raw(
    folder: str | Path, part: str = "Tr", activation: str | None = None, patient: str | None = None
) -> Sequence[LabelMapCase]:
    """List the cases of a raw folder of nnU-Net v2.

    Args:
        part: "Tr" with labels, "Ts" with labels where `labelsTs` is there.
        activation: None takes softmax for several labels that exclude each other, else sigmoid.
        patient: regular expression with one group, the patient's name in a case's; every case is a patient by default.
    Raises:
        DataError: no such folder, a dataset.json that is not nnU-Net's, a channel or label without its partner, or
            another number of cases than declared.
    """
    description = read_dataset_json(folder, activation)
    if description.is_decathlon:
        raise DataError(f"{description.path}: of the decathlon, without channel_names; use read_msd")
    return list_nnunet_raw(description, part, patient).checked()


def read_msd(
    folder: str | Path, part: str = "Tr", activation: str | None = None, patient: str | None = None
) -> Sequence[LabelMapCase]:
    """List the cases of a folder of the Medical Segmentation Decathlon; arguments as of `read_nnunet_raw`.

    Raises:
        DataError: no such folder, a dataset.json that is not the decathlon's, or a listed name that leads elsewhere.
    """
    description = read_dataset_json(folder, activation)
    if not description.is_decathlon:
        raise DataError(f"{description.path}: of nnU-Net, with channel_names; use read_nnunet_raw")
    return list_msd(description, part, patient).checked()


def read_dataset_json(folder: str | Path, activation: str | None = None) -> DatasetJson:
    """Read and check the description of a data set; DataError names the file and the key."""
    path = Path(folder) / DATASET_JSON
    content = read_json(path, max_bytes=2**26)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected an object; fetch it again")
    key = "channel_names" if "channel_names" in content else "modality"
    names = content.get(key)
    if not isinstance(names, Mapping) or not all(str(k) in names for k in range(len(names))) or not names:
        raise DataError(f"{path}: {key!r} must be an object with the keys 0, 1 … for the channels; correct it")
    channels = tuple(str(names[str(k)]) for k in range(len(names)))
    regions = read_regions(content.get("labels"), str(path), activation)
    ending = content.get("file_ending", ENDINGS[0])
    if ending not in ENDINGS:
        raise DataError(
            f"{path}: file_ending {ascii(ending)[:40]}; {', '.join(ENDINGS)} can be read, convert the files"
        )
    return DatasetJson(path, channels, regions, ending, key == "modality", content)


def list_nnunet_raw(description: DatasetJson, part: str, patient: str | None = None) -> Listing:
    """The cases of `images<part>` with everything that is wrong with names and numbers."""
    root, patient_of = description.path.parent, patient_names(patient)
    images, labels = root / f"images{_checked_part(part)}", root / f"labels{part}"
    found: dict[str, dict[int, Path]] = {}
    faults = []
    for stem, files in listed_files(images, (description.ending,)).items():
        name = re.fullmatch(r"(.+)_(\d{4})", stem)
        if name is None:
            what = f"{files[0]}: no channel at the end of the name; call it {stem}_0000{description.ending}"
            faults.append(Fault("bad name", what))
        else:
            found.setdefault(name[1], {})[int(name[2])] = files[0]
    targets = listed_files(labels, (description.ending,)) if part == "Tr" or labels.is_dir() else None
    for stem in sorted(set(targets or ()) - found.keys()):
        faults.append(Fault("no partner", f"{targets[stem][0]}: no {stem}_0000 in {images.name}; add or remove it"))
    cases = []
    for name, pictures in sorted(found.items()):
        here, declared = sorted(pictures), list(range(len(description.channels)))
        if here != declared:
            what = f"{images}: {name} has the channels {here}, dataset.json declares {declared}; add or remove files"
            faults.append(Fault("channels differ", what))
        elif targets is not None and name not in targets:
            what = f"{pictures[0]}: no {name}{description.ending} in {labels.name}; add it or remove the case"
            faults.append(Fault("no partner", what))
        else:
            files = tuple(pictures[k] for k in declared)
            label = None if targets is None else targets[name][0]
            cases.append(LabelMapCase(name, patient_of(name), files, label, description.regions))
    if not found:
        raise DataError(f"{images}: no pictures (*_0000{description.ending}); check the folder and file_ending")
    declared_number = description.content.get("numTraining")
    if part == "Tr" and declared_number is not None and declared_number != len(found):
        what = f"{description.path}: numTraining is {declared_number}, {images.name} has {len(found)}; correct one"
        faults.append(Fault("number differs", what))
    return Listing(tuple(cases), tuple(faults))


def list_msd(description: DatasetJson, part: str, patient: str | None = None) -> Listing:
    """The cases that the json of the decathlon lists for a part; files are looked for when a case is read."""
    root, patient_of = description.path.parent, patient_names(patient)
    key = "training" if _checked_part(part) == "Tr" else "test"
    rows = description.content.get(key)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{description.path}: {key!r} must be a list of files, not empty; correct it")
    cases: dict[str, LabelMapCase] = {}
    faults = []
    for index, row in enumerate(rows):
        where = f"{description.path}: {key} {index}"
        names = [row.get("image"), row.get("label")] if isinstance(row, Mapping) else [row]
        if not all(isinstance(name, str) for name in names) or len(names) != (2 if key == "training" else 1):
            raise DataError(
                f"{where}: expected {'an image and its label' if key == 'training' else 'a file'}; correct it"
            )
        picture, *label = (inside(root, name.removeprefix("./")) for name in names)
        case_id = re.sub(r"\.nii(\.gz)?$", "", picture.name)
        if case_id in cases:
            faults.append(Fault("name twice", f"{where}: {case_id} is listed twice; remove one"))
            continue
        cases[case_id] = LabelMapCase(
            case_id, patient_of(case_id), (picture,), label[0] if label else None, description.regions,
            len(description.channels),
        )  # fmt: skip
    return Listing(tuple(cases.values()), tuple(faults))


def _checked_part(part: str) -> str:
    if part not in PARTS:
        raise DataError(f"part {part!r}: give one of {', '.join(PARTS)}")
    return part
