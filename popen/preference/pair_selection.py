"""Which of the mined text pairs to train on: what a pair teaches besides the truth of one answer."""

import random
from dataclasses import dataclass
from typing import Literal

import datasets

from popen.data.schema import SEG
from popen.preference.correcting import PHRASES

Selection = Literal["all", "hallucinated", "hallucinated_phrases", "hallucinated_balanced"]


@dataclass(frozen=True)
class PairTraits:
    """Of one pair: whether the rejected answer hallucinates, the correction's kind, and how many targets it adds."""

    hallucinated: bool
    kind: str
    added: int


def pair_traits(text: datasets.Dataset) -> list[PairTraits]:
    """The traits of every row of P_t."""
    columns = (text[name][:] for name in ("hallucinated", "kind", "chosen", "rejected"))
    return [PairTraits(h, kind, c.count(SEG) - r.count(SEG)) for h, kind, c, r in zip(*columns, strict=True)]


def select_pairs(traits: list[PairTraits], selection: Selection, seed: int = 0) -> list[int]:
    """Indices of the selected pairs, in order (ours).

    "all"; "hallucinated": the rejected answer names a thing that is not in the picture; "hallucinated_phrases": of
    these where phrases were replaced, so that no pair teaches to deny or to name fewer things;
    "hallucinated_balanced": all hallucinated ones, and of the others that were corrected to *more* targets as many,
    drawn by seed, as make up for those corrected to fewer: a model is taught what to leave out, not to say less.
    """
    wrong = [i for i, pair in enumerate(traits) if pair.hallucinated]
    if selection == "all":
        return list(range(len(traits)))
    if selection == "hallucinated":
        return wrong
    if selection == "hallucinated_phrases":
        return [i for i in wrong if traits[i].kind == PHRASES]
    fewer, more = (sum(sign * traits[i].added > 0 for i in wrong) for sign in (-1, 1))
    omissions = [i for i, pair in enumerate(traits) if not pair.hallucinated and pair.added > 0]
    drawn = random.Random(seed).sample(omissions, min(len(omissions), max(0, fewer - more)))
    return sorted([*wrong, *drawn])
