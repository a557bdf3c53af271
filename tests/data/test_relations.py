"""What is directly below, and which one is clearly nearest: from masks drawn by hand."""

import numpy as np

from popen.data import rle
from popen.data.relations import CLEAR, below, clearly_nearest, relation_questions
from popen.data.schema import SEG


def box(top, left, bottom, right, shape=(100, 100)) -> np.ndarray:
    found = np.zeros(shape, bool)
    found[top:bottom, left:right] = True
    return found


CAR, ROAD, GRASS = box(40, 20, 60, 50), box(60, 0, 100, 60), box(60, 60, 100, 100)


def test_what_is_below_is_what_most_pixels_under_it_belong_to():
    assert below(CAR, [("road", ROAD), ("grass", GRASS)])[0] == "road"


def test_two_grounds_half_each_are_no_answer():
    """The car stands 15 columns on each: half is under the majority of 0.6."""
    car = box(40, 45, 60, 75)
    assert below(car, [("road", ROAD), ("grass", GRASS)]) is None


def test_what_reaches_the_edge_stands_on_nothing():
    assert below(ROAD, [("car", CAR), ("grass", GRASS)]) is None


def test_nothing_else_in_the_picture():
    assert below(CAR, []) is None


def test_nearest_needs_a_clear_lead():
    """Centres 10 and 20 pixels away are clear, 10 and 12 are not: 10 > 0.7 · 12."""
    anchor = box(0, 0, 2, 2)
    assert np.array_equal(clearly_nearest(anchor, [box(0, 20, 2, 22), box(0, 10, 2, 12)]), box(0, 10, 2, 12))
    assert clearly_nearest(anchor, [box(0, 12, 2, 14), box(0, 10, 2, 12)]) is None and CLEAR * 12 < 10


def test_questions_of_a_street():
    """One car on the road, two trees of which the left is nearest to the car; both trees stand on no single ground."""
    near, far = box(20, 0, 60, 10), box(20, 85, 60, 95)
    drafts = relation_questions([("car", CAR), ("road", ROAD), ("grass", GRASS), ("tree", near), ("tree", far)])
    by_question = {draft[1]: draft for draft in drafts}
    ground = by_question["What is directly below the car?"]
    assert ground[0] == "relation" and ground[2] == f"The road {SEG} is directly below the car."
    assert np.array_equal(rle.decode(ground[4][0]), ROAD)
    nearest = by_question["Which tree is nearest to the car?"]
    assert nearest[2] == f"The tree nearest to the car {SEG} is here." and nearest[3] == ("tree nearest to the car",)
    assert np.array_equal(rle.decode(nearest[4][0]), near)
    assert not any("below the tree" in question for question in by_question)


def test_specks_are_neither_asked_for_nor_asked_by():
    assert relation_questions([("car", box(57, 20, 60, 23)), ("road", ROAD)]) == []
