"""Questions that name one thing by where another is: what stands directly below it, which one is nearest to it."""

from collections.abc import Sequence

import numpy as np

from popen.data import rle
from popen.data.schema import SEG

DEPTH = 0.02  # of the picture's height: how far below a thing its ground is looked for
MAJORITY = 0.6  # of these pixels must be one name's
CLEAR = 0.7  # the nearest one is at most this share of the next one's distance away
LEAST_PIXELS = 64


def relation_questions(targets: Sequence[tuple[str, np.ndarray]]) -> list[tuple]:
    """Drafts (kind, question, answer, phrases, masks); every answer follows from masks alone.

    Args:
        targets: name and mask, bool (H, W), of everything in the picture.
    """
    counts: dict[str, int] = {}
    for name, _ in targets:
        counts[name] = counts.get(name, 0) + 1
    single = [(name, mask) for name, mask in targets if counts[name] == 1 and mask.sum() >= LEAST_PIXELS]
    drafts = []
    for name, mask in single:
        ground = below(mask, [(other, own) for other, own in targets if other != name])
        if ground is not None and counts[ground[0]] == 1:
            words = f"The {ground[0]} {SEG} is directly below the {name}."
            drafts.append(_draft(f"What is directly below the {name}?", words, *ground))
        for other in sorted(counts):
            group = [own for named, own in targets if named == other and own.sum() >= LEAST_PIXELS]
            if other == name or len(group) < 2 or len(group) != counts[other]:
                continue
            nearest = clearly_nearest(mask, group)
            if nearest is not None:
                phrase = f"{other} nearest to the {name}"
                question = f"Which {other} is nearest to the {name}?"
                drafts.append(_draft(question, f"The {phrase} {SEG} is here.", phrase, nearest))
    return drafts


def below(mask_HW: np.ndarray, others: Sequence[tuple[str, np.ndarray]]) -> tuple[str, np.ndarray] | None:
    """Name and mask of what most of the pixels right under a mask belong to; None where no name has most."""
    height = mask_HW.shape[0]
    depth = max(round(DEPTH * height), 1)
    columns = np.flatnonzero(mask_HW.any(0))
    bottoms = height - 1 - np.argmax(mask_HW[::-1, columns], axis=0)
    under = np.zeros_like(mask_HW)
    for step in range(1, depth + 1):
        rows = bottoms + step
        inside = rows < height
        under[rows[inside], columns[inside]] = True
    total = under.sum()
    if total < depth * len(columns) / 2:
        return None  # it reaches the picture's edge
    shares = [((under & mask).sum() / total, name, mask) for name, mask in others]
    share, name, mask = max(shares, key=lambda entry: entry[0], default=(0.0, "", None))
    return (name, mask) if share >= MAJORITY and mask is not None else None


def clearly_nearest(mask_HW: np.ndarray, group: Sequence[np.ndarray]) -> np.ndarray | None:
    """The mask of a group whose centre is clearly nearest to a mask's; None where two are about as near."""
    distances = [float(np.hypot(*np.subtract(_centre(own), _centre(mask_HW)))) for own in group]
    order = np.argsort(distances, kind="stable")
    return group[order[0]] if distances[order[0]] <= CLEAR * distances[order[1]] else None


def _centre(mask_HW: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask_HW)
    return float(rows.mean()), float(columns.mean())


def _draft(question: str, answer: str, phrase: str, mask_HW: np.ndarray) -> tuple:
    return "relation", question, answer, (phrase,), (rle.encode(mask_HW),)
