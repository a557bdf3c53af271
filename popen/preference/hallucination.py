"""CHAIR: things an answer names that are not in the picture (Rohrbach et al. 2018), from the scene graph."""

import re
from collections import Counter
from dataclasses import dataclass

DENIAL = re.compile(r"\b(?:no|not|without|nothing)\b(?:(?!\bbut\b)[^.,;])*", re.IGNORECASE)


@dataclass(frozen=True)
class Mentions:
    """How many things an answer asserts, and how many of them are not in the picture."""

    named: int
    hallucinated: int


def mentions(answer: str, present: tuple[str, ...], vocabulary: re.Pattern) -> Mentions:
    """Counts the vocabulary's names in an answer, denials ("there is no red ball") left out."""
    asserted = vocabulary.findall(DENIAL.sub(" ", answer).lower())
    there = {name.lower() for name in present}
    return Mentions(len(asserted), sum(name not in there for name in asserted))


def name_pattern(names: set[str]) -> re.Pattern:
    """Finds any of the names as whole words, the longest first.

    Raises:
        ValueError: no names.
    """
    if not names:
        raise ValueError("no names to look for; the data set's `objects` are empty")
    ordered = sorted({n.lower() for n in names}, key=lambda n: (-len(n), n))
    return re.compile(r"\b(?:" + "|".join(map(re.escape, ordered)) + r")\b")


def chair_i(found: list[Mentions]) -> float:
    """Hallucinated share of all named things, 0..1; 0 when nothing is named."""
    named = sum(m.named for m in found)
    return sum(m.hallucinated for m in found) / named if named else 0.0


def chair_s(found: list[Mentions]) -> float:
    """Share of answers with at least one hallucinated thing, 0..1."""
    return sum(m.hallucinated > 0 for m in found) / len(found) if found else 0.0


def attribute_errors(phrases: tuple[str, ...], true_phrases: tuple[str, ...]) -> int:
    """How many phrases name a right kind of thing by a wrong attribute: "red ball" where the truth says "blue ball".

    Phrases that the truth has too are set aside first; of the rest one is an error where its last word is that of a
    true phrase that is left (ours; the last word is the noun in English).
    """
    said, true = (Counter(p.lower() for p in own if p.strip()) for own in (phrases, true_phrases))
    nouns, due = (Counter(p.split()[-1] for p in own.elements()) for own in (said - true, true - said))
    return (nouns & due).total()
