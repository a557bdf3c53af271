"""What a medical trainer sees of a picture, and how pictures become a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from popen.medical.augmentation import augmented
from popen.medical.mask_pairs import MaskPair
from popen.medical.views import View, flipped


@dataclass(frozen=True)
class Example:
    """A picture (C, *spatial) with its true masks, bool (K, *spatial), or a preference pair, or both.

    `distance` and `geodesic` are those of `popen.medical.supervised.Labelled`, for losses that ask for them.
    """

    picture: torch.Tensor
    masks: torch.Tensor | None = None
    pair: MaskPair | None = None
    distance: torch.Tensor | None = None
    geodesic: torch.Tensor | None = None


class Streams(Dataset):
    """Item i is one labelled example and, where there is a pool, one of that; the shorter stream starts over.

    Each comes with the number of a random view, drawn from torch's own generator, which the Trainer seeds and resumes.

    Raises:
        ValueError: no labelled example.
    """

    def __init__(self, labelled: Sequence[Example], pool: Sequence[Example], views: Sequence[View]):
        if not labelled:
            raise ValueError("no labelled example: supervised terms need at least one")
        self.streams = [labelled, *([pool] if pool else [])]
        self.views = tuple(views)

    def __len__(self) -> int:
        return max(map(len, self.streams))

    def __getitem__(self, index: int) -> list[tuple[Example, int]]:
        drawn = torch.randint(len(self.views), (len(self.streams),)).tolist()
        examples = [stream[index % len(stream)] for stream in self.streams]
        return [(moved(example), view) for example, view in zip(examples, drawn, strict=True)]


def moved(example: Example) -> Example:
    """A labelled example is augmented; one with a pair is only seen in its views."""
    if example.masks is None or example.pair is not None:
        return example
    maps = [tensor for tensor in (example.distance, example.geodesic) if tensor is not None]
    picture, masks, *rest = augmented(example.picture, example.masks, *maps)
    distance = rest.pop(0) if example.distance is not None else None
    return Example(picture, masks, None, distance, rest[0] if rest else None)


class Collator:
    """Examples in their views to one batch; masks, pairs and distances stay on the unflipped grid."""

    def __init__(self, views: Sequence[View]):
        self.views = tuple(views)

    def __call__(self, items: list[list[tuple[Example, int]]]) -> dict:
        rows = [row for item in items for row in item]
        examples, drawn = zip(*rows, strict=True)
        batch = {
            "pictures": torch.stack([flipped(e.picture, self.views[v]) for e, v in rows]).float(),
            "views": torch.tensor(drawn),
        }
        batch |= self._supervised(examples) | self._paired(rows)
        return batch

    def _supervised(self, examples: Sequence[Example]) -> dict:
        known = [i for i, e in enumerate(examples) if e.masks is not None]
        batch = {"true_row": torch.tensor(known, dtype=torch.long)}
        if known:
            batch["true_masks"] = torch.stack([examples[i].masks for i in known])
        for name in ("distance", "geodesic"):
            maps = [own for i in known if (own := getattr(examples[i], name)) is not None]
            if maps:
                batch[name] = torch.stack(maps).float()
        return batch

    def _paired(self, rows: list[tuple[Example, int]]) -> dict:
        paired = [(i, e.pair, v) for i, (e, v) in enumerate(rows) if e.pair is not None]
        batch = {"pair_row": torch.tensor([i for i, _, _ in paired], dtype=torch.long)}
        if paired:
            batch |= {
                "chosen": torch.stack([pair.chosen for _, pair, _ in paired]),
                "region_index": pad_sequence([pair.index for _, pair, _ in paired], batch_first=True),
                "region_sign": pad_sequence([pair.sign for _, pair, _ in paired], batch_first=True),
                "region_classes": pad_sequence([pair.classes for _, pair, _ in paired], batch_first=True),
                "region_reference": pad_sequence([pair.reference[v] for _, pair, v in paired], batch_first=True),
                "gap": torch.tensor([pair.gap for _, pair, _ in paired]),
                "weight": torch.tensor([pair.weight for _, pair, _ in paired]),
                "entries": paired[0][1].entries,
            }
        return batch
