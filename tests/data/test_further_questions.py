"""Uses and relations of one picture: numbered, capped, the same for the same seed."""

import random

import numpy as np

from popen.data.further_questions import MOST_RELATIONS, MOST_USES, further_questions


def street() -> list[tuple[str, np.ndarray]]:
    """A car, a bus and a person, each on the road, under the sky; a pavement beside it."""
    boxes = {
        "sky": (0, 0, 30, 100), "car": (40, 5, 60, 30), "bus": (35, 40, 60, 60), "person": (45, 70, 60, 80),
        "road": (60, 0, 100, 90), "pavement": (60, 90, 100, 100),
    }  # fmt: skip
    found = []
    for name, (top, left, bottom, right) in boxes.items():
        mask = np.zeros((100, 100), bool)
        mask[top:bottom, left:right] = True
        found.append((name, mask))
    return found


def test_they_are_numbered_and_capped():
    """Three things stand on the road: two relations are kept; several uses apply: three are."""
    questions = further_questions("set/7", 4, street(), True, random.Random(0))
    kinds = [q.kind for q in questions]
    assert [q.id for q in questions] == [f"set/7/{4 + n}" for n in range(MOST_USES + MOST_RELATIONS)]
    assert kinds.count("relation") == MOST_RELATIONS and len(kinds) - kinds.count("relation") == MOST_USES
    assert all(len(q.masks) == len(q.phrases) == q.answer.count("<seg>") for q in questions)


def test_the_same_seed_asks_the_same():
    first, second = (further_questions("a", 0, street(), True, random.Random(3)) for _ in range(2))
    assert first == second


def test_of_a_picture_without_labels_nothing_is_asked():
    assert further_questions("a", 0, [], True, random.Random(0)) == ()
