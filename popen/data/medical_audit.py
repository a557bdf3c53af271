"""An audit of medical cases before anything is trained on them: every file of every case, and what splits share.

An error is what training refuses or would learn wrongly; a warning is what may be meant so. Nothing here changes the
data, and every check is the one that reading a case makes.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from popen.data.faults import Audit, Fault, FaultLog
from popen.data.label_map_case import LabelMapCase, list_volume_folder
from popen.data.medical_case import EMPTY, Case, CaseReference, Examined, Listing, patient_names
from popen.data.medical_folders import THRESHOLD, further_annotators, list_image_folder
from popen.data.medical_layout import DATASET_JSON, MASK_FOLDERS, is_layout
from popen.data.nifti import is_nifti
from popen.data.nnunet_raw import PARTS, DatasetJson, list_msd, list_nnunet_raw, read_dataset_json
from popen.data.safe_io import DataError

QUANTILES = (0.05, 0.5, 0.95)


@dataclass
class CaseCounts:
    """What a split holds: sizes, spacings, and for each region how often it is there and how large.

    agreement: Dice of a further annotator's masks with the first one's, 1 where both are empty.
    """

    names: tuple[str, ...] = ()
    cases: int = 0
    patients: set[str] = field(default_factory=set)
    unlabelled: int = 0
    empty: int = 0
    grey: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    shares: list[np.ndarray] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    ids: Counter[int] = field(default_factory=Counter)

    def add(self, case: Case) -> None:
        """Count a case that could be read."""
        self.shapes.append(case.image_CHW.shape)
        self.spacings.append(case.spacing)
        if case.masks_KHW is None:
            self.unlabelled += 1
        else:
            self.shares.append(case.masks_KHW.reshape(len(case.masks_KHW), -1).mean(1))
            for further in case.further_masks:
                both, total = (case.masks_KHW & further).sum(), case.masks_KHW.sum() + further.sum()
                self.agreement.append(float(2 * both / total) if total else 1.0)

    def lines(self, split: str) -> list[str]:
        """The counts as a small table."""
        told = [f"{split}: {self.cases} cases of {len(self.patients)} patients, {self.unlabelled} without labels"]
        for what, rows in (("size", self.shapes), ("spacing in mm", self.spacings)):
            for number in sorted({len(row) for row in rows}):
                table = np.array([row for row in rows if len(row) == number])
                low, middle, high = (_times(np.quantile(table, q, axis=0, method="nearest")) for q in (0, 0.5, 1))
                told.append(f"  {what:<16} {low if low == high else f'{low} to {high}, median {middle}'}")
        if self.shares:
            table = np.array(self.shares)
            for number, name in enumerate(self.names or ("foreground",)):
                there = table[table[:, number] > 0, number]
                told.append(f"  {name:<16} in {len(there)} cases{_spread(there)}")
            told.append(f"  empty masks      {self.empty}")
        if self.agreement:
            told.append(f"  further masks    {len(self.agreement)}, Dice with the first {_quantiles(self.agreement)}")
        if self.ids and not self.names:
            told.append(f"  label ids        {', '.join(f'{i}: {n} cases' for i, n in sorted(self.ids.items()))}")
        if self.grey:
            told.append(f"  masks with grey  {self.grey}, as JPEG makes it: above {THRESHOLD} is foreground")
        return told


def audit_medical(path: str | Path, splits: list[str] | None = None, patient: str | None = None) -> Audit:
    """Check every case of a data set, under a progress bar; a bad case does not end it.

    Args:
        path: a folder with a dataset.json of nnU-Net or the decathlon (splits Tr and Ts), with images/ and masks/ or
            labels/, or with such folders as its splits.
        splits: those to check; all by default.
        patient: regular expression with one group, the patient's name in a case's; every case is a patient by default.
    Raises:
        DataError: no such folder, an unknown split, a dataset.json or a pattern that cannot be used.
    """
    patient_names(patient)  # a pattern that is none ends the audit, and not every split of it
    log, seen = FaultLog(), _Seen(patient is not None)
    counts: dict[str, CaseCounts] = {}
    there = _splits(Path(path), patient)
    for split in dict.fromkeys(splits or there):
        if split not in there:
            raise DataError(f"{path}: no split {split!r}; there: {', '.join(there)}")
        try:
            listing = there[split]()
        except DataError as error:
            log.tell(split, Fault("split cannot be read", str(error)))
            continue
        for fault in listing.faults:
            log.tell(split, fault)
        held = counts[split] = CaseCounts(_region_names(listing))
        for reference in tqdm(listing.references, desc=split, unit="case"):
            examined = reference.examine()
            for fault in (*examined.faults, *seen.faults(reference, examined, split)):
                log.tell(f"{split}: {reference.case_id}", fault)
            _count(held, reference, examined)
        for fault in seen.names(listing, split):
            log.tell(split, fault)
        if held.shares and held.empty == len(held.shares):
            log.tell(split, Fault("all masks empty", "no case has any foreground; check the labels and their ids"))
    return log.audit(counts)


def _splits(root: Path, patient: str | None) -> dict[str, Callable[[], Listing]]:
    """Ways to list the cases of each split."""
    if (root / DATASET_JSON).is_file():
        description = read_dataset_json(root)
        parts = [part for part in PARTS if part == "Tr" or _has_test_part(description)]
        listed = list_msd if description.is_decathlon else list_nnunet_raw
        return {part: partial(listed, description, part, patient) for part in parts}
    if is_layout(root):
        return {root.resolve().name: partial(_list_folder, root, patient)}
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and is_layout(folder))
    found = {}
    for folder in folders:
        inner = _splits(folder, patient)
        found |= {folder.name if len(inner) == 1 else f"{folder.name}/{name}": way for name, way in inner.items()}
    return found


def _has_test_part(description: DatasetJson) -> bool:
    if description.is_decathlon:
        return bool(description.content.get("test"))
    return (description.path.parent / "imagesTs").is_dir()


def _list_folder(folder: Path, patient: str | None) -> Listing:
    masks = next(name for name in MASK_FOLDERS if (folder / name).is_dir())
    if any(is_nifti(file) for file in (folder / "images").iterdir()):
        return list_volume_folder(folder, None, labels=masks, patient=patient)
    return list_image_folder(folder, masks=masks, patient=patient, further=further_annotators(folder))


def _region_names(listing: Listing) -> tuple[str, ...]:
    first = listing.references[0] if listing.references else None
    if isinstance(first, LabelMapCase):
        return () if first.regions is None else first.regions.names
    return ("foreground",)


def _count(held: CaseCounts, reference: CaseReference, examined: Examined) -> None:
    held.cases += 1
    held.patients.add(reference.patient)
    held.ids.update(examined.ids)
    held.grey += examined.grey > 0
    if examined.case is not None:
        held.add(examined.case)
        held.empty += any(fault.sort == EMPTY for fault in examined.faults)


class _Seen:
    """Names, patients and pictures of the cases so far, of all splits."""

    def __init__(self, patients_known: bool) -> None:
        self.patients_known = patients_known
        self.patients: dict[str, str] = {}
        self.pictures: dict[bytes, tuple[str, str]] = {}

    def faults(self, reference: CaseReference, examined: Examined, split: str) -> Iterator[Fault]:
        """The picture, seen before in this split or in another."""
        if examined.case is None:
            return
        image = examined.case.image_CHW
        pixels = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        other, name = self.pictures.setdefault(pixels, (split, reference.case_id))
        if other != split:
            yield Fault("picture in two splits", f"the same picture is {name} in {other}; keep it in one split")
        elif name != reference.case_id:
            yield Fault("picture twice", f"the same picture is {name}; keep one", is_error=False)

    def names(self, listing: Listing, split: str) -> Iterator[Fault]:
        """Patients of a split who stand in an earlier one; equal names of cases alone may be mere numbers."""
        shared: dict[str, list[str]] = {}
        for patient in sorted({reference.patient for reference in listing.references}):
            first = self.patients.setdefault(patient, split)
            if first != split:
                shared.setdefault(first, []).append(patient)
        for first, patients in shared.items():
            some = f"{', '.join(patients[:5])}{' …' if len(patients) > 5 else ''}"
            if self.patients_known:
                for patient in patients:
                    what = f"patient {patient!r} also stands in {first}; keep all cases of a patient in one split"
                    yield Fault("patient in two splits", what)
            else:
                what = f"{len(patients)} case names also stand in {first} ({some}); where names tell patients, give "
                what += "--patient"
                yield Fault("name in two splits", what, is_error=False)


def _spread(shares: np.ndarray) -> str:
    if not len(shares):
        return ""
    return f", shares of the picture {_quantiles(shares)}"


def _quantiles(shares: Sequence[float] | np.ndarray) -> str:
    values = zip(QUANTILES, np.quantile(shares, QUANTILES), strict=True)
    return ", ".join(f"{q:.0%} {value:.3%}" for q, value in values)


def _times(numbers) -> str:
    return " × ".join(f"{number:.4g}" for number in numbers)
