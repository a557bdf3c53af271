"""Cases in memory as a network sees them, cut to its patch size where they are larger."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from tqdm.auto import tqdm

from popen.data.medical_case import CaseReference
from popen.data.safe_io import DataError
from popen.medical.boundary import geodesic_membership, one_hot_geodesic_membership, signed_distance
from popen.medical.examples import Example
from popen.medical.mask_pairs import MaskPair
from popen.medical.transforms import Preprocessing


@dataclass(frozen=True)
class Prepared:
    """A picture (C, *patch) and its masks, bool (K, *patch), or None where they are kept away.

    `further` are the masks of further annotators, alike.
    """

    name: str
    picture: torch.Tensor
    masks: torch.Tensor | None
    spacing: tuple[float, ...]
    patient: str
    further: tuple[torch.Tensor, ...] = ()

    def example(self, pair: MaskPair | None = None, distance: bool = False, geodesic: bool = False) -> Example:
        """What a trainer sees, with the maps that its loss asks for.

        Distances are in pixels of the network's own grid, steps of its finest axis: a picture of a thousand pixels
        that is resized to a hundred has no boundary that is known to a tenth of those.
        """
        maps: dict[str, torch.Tensor] = {}
        if self.masks is not None and distance:
            steps = [step / min(self.spacing) for step in self.spacing]
            maps["distance"] = torch.from_numpy(signed_distance(self.masks.numpy(), steps)).float()
        if self.masks is not None and geodesic:
            one_hot = len(self.masks) > 1 and bool((self.masks.sum(0) == 1).all())
            membership = one_hot_geodesic_membership if one_hot else geodesic_membership
            maps["geodesic"] = torch.from_numpy(
                membership(self.picture.numpy(), self.masks.numpy(), self.spacing, 0.5)
            ).float()
        return Example(self.picture, self.masks, pair, **maps)


def prepare(
    references: Sequence[CaseReference], preprocessing: Preprocessing, patch_size: tuple[int, ...], labelled: bool
) -> list[Prepared]:
    """Loads cases; of unlabelled ones (`labelled` false) no mask is kept.

    Raises:
        DataError: a case that cannot be used, a labelled one without masks, or one smaller than the patch.
    """
    found = []
    for reference in tqdm(references, desc="loading", unit="case", leave=False):
        case = reference.load()
        picture, record = preprocessing.apply(case)
        if labelled and case.masks_KHW is None:
            raise DataError(f"{case.case_id}: no masks; leave it out of the labelled cases")
        masks = preprocessing.apply_masks(case.masks_KHW, record) if labelled and case.masks_KHW is not None else None
        further = [preprocessing.apply_masks(own, record) for own in case.further_masks if labelled]
        spacing = tuple(step * n / m for step, n, m in zip(case.spacing, record.own, record.resampled, strict=True))
        found += [
            Prepared(
                f"{case.case_id}{place}", picture[window], None if masks is None else masks[window], spacing,
                case.patient, tuple(own[window] for own in further),
            )
            for place, window in windows(picture.shape[1:], patch_size, case.case_id)
        ]  # fmt: skip
    return found


def windows(size: Sequence[int], patch: tuple[int, ...], name: str) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Windows of the patch size that cover a picture, overlapping where it is no multiple; the first axis is C's.

    Raises:
        DataError: the picture is smaller than the patch.
    """
    if any(have < need for have, need in zip(size, patch, strict=True)):
        raise DataError(
            f"{name}: {tuple(size)} is smaller than the patch {patch}; pad it (fit: pad) or lower the patch"
        )
    counts = [-(-have // need) for have, need in zip(size, patch, strict=True)]
    starts = [
        [round(k * (have - need) / max(count - 1, 1)) for k in range(count)]
        for have, need, count in zip(size, patch, counts, strict=True)
    ]
    for corner in product(*starts):
        window = tuple(slice(start, start + need) for start, need in zip(corner, patch, strict=True))
        place = "" if max(counts) == 1 else "@" + "-".join(map(str, corner))
        yield place, (slice(None), *window)
