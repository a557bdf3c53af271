"""Questions about what things are for."""

import random

import numpy as np
import pytest

from popen.data import rle
from popen.data.schema import SEG
from popen.data.uses import MOST_TARGETS, USES, use_questions


def mask(row: int) -> np.ndarray:
    found = np.zeros((6, 8), bool)
    found[row] = True
    return found


def asked(targets, complete=True, most=20):
    return {draft[1]: draft for draft in use_questions(targets, complete, most, random.Random(0))}


def test_a_street():
    """The pavement serves the walker, the road the car; both road users must not be hit, in the order given."""
    targets = [("road", mask(5)), ("pavement", mask(4)), ("pedestrian", mask(1)), ("bicyclist", mask(2))]
    found = asked(targets, complete=False)
    walk = found["Where may a pedestrian walk?"]
    assert walk[0] == "use" and walk[2] == f"A pedestrian may walk on the pavement {SEG}."
    assert walk[3] == ("pavement",) and np.array_equal(rle.decode(walk[4][0]), mask(4))
    hit = found["What must the driver not hit?"]
    assert hit[2] == f"The driver must not hit the pedestrian {SEG} and the bicyclist {SEG}."
    assert [np.flatnonzero(rle.decode(m).any(1)).tolist() for m in hit[4]] == [[1], [2]]
    assert "What can fly?" not in found


def test_what_nothing_serves_is_asked_where_everything_is_labelled():
    targets = [("road", mask(5)), ("car", mask(2))]
    found = asked(targets)
    assert found["What must the driver not hit?"] == (
        "no_use", "What must the driver not hit?", "There is nothing here that the driver could hit.", (), ()
    )  # fmt: skip
    assert all(draft[0] == "use" for draft in asked(targets, complete=False).values())


def test_nothing_is_not_said_of_what_is_there_and_hardly_seen():
    """A pedestrian of a few pixels is nothing to point at, and yet a driver could hit it; other uses stay."""
    targets = [("road", mask(5)), ("car", mask(2))]
    found = {d[1] for d in use_questions(targets, True, 20, random.Random(0), hardly_seen={"pedestrian"})}
    assert "What must the driver not hit?" not in found
    assert found == set(asked(targets)) - {"What must the driver not hit?"}


def test_crowded_answers_are_not_asked_for():
    people = [("person", mask(i % 6)) for i in range(MOST_TARGETS + 1)]
    assert "What must the driver not hit?" not in asked([("road", mask(5)), *people])


def test_a_sentence_begins_with_a_capital():
    """Where the answer starts with what serves."""
    assert asked([("bird", mask(0))])["What can fly?"][2] == f"The bird {SEG} can fly."


@pytest.mark.parametrize("most", [0, 1, 3, 6])
def test_at_most_so_many_and_a_third_of_them_without_an_answer(most):
    targets = [(name, mask(1)) for name in ("road", "car", "sky", "chair", "cup", "knife", "dining table", "tree")]
    drafts = use_questions(targets, True, most, random.Random(1))
    assert len(drafts) <= most and sum(d[0] == "no_use" for d in drafts) <= most // 3
    assert drafts == use_questions(targets, True, most, random.Random(1))


def test_the_table_is_sound():
    """Every use has a question of its own, a place for what serves, and something that serves."""
    assert len({use.question for use in USES}) == len(USES)
    for use in USES:
        assert use.answer.count("{}") == 1 and use.answer.endswith(".") and use.nothing.endswith(".")
        assert use.names and SEG not in use.answer + use.question + use.nothing
