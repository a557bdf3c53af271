"""What an answer asserts, denies and makes up, counted by hand."""

import pytest

from popen.preference.hallucination import Mentions, attribute_errors, chair_i, chair_s, mentions, name_pattern

NAMES = name_pattern({"red ball", "blue box", "bear", "teddy bear", "cup"})


@pytest.mark.parametrize(
    "answer, present, named, hallucinated",
    [
        ("The red ball <seg> and the blue box <seg>.", ("red ball", "blue box"), 2, 0),
        ("The red ball <seg> and the blue box <seg>.", ("red ball",), 2, 1),
        ("The red ball is left of the red ball.", (), 2, 2),
        ("THE RED BALL <seg>", ("Red Ball",), 1, 0),
        ("Nothing is here.", ("red ball",), 0, 0),
        ("", (), 0, 0),
    ],
    ids=["both there", "one made up", "every mention counts", "case", "nothing named", "silent"],
)
def test_names_are_counted(answer, present, named, hallucinated):
    assert mentions(answer, present, NAMES) == Mentions(named, hallucinated)


def test_the_longest_name_wins():
    """A teddy bear is no bear: it counts once, and only as itself."""
    assert mentions("a teddy bear", ("teddy bear",), NAMES) == Mentions(1, 0)
    assert mentions("a teddy bear", ("bear",), NAMES) == Mentions(1, 1)
    assert mentions("a bear", ("teddy bear",), NAMES) == Mentions(1, 1)
    assert mentions("a bear and a teddy bear", ("bear", "teddy bear"), NAMES) == Mentions(2, 0)


@pytest.mark.parametrize("answer", ["bears", "cupboard", "a hiccup", "beard", "teacup", "red balls"])
def test_only_whole_words_count(answer):
    assert mentions(answer, (), NAMES).named == 0


@pytest.mark.parametrize(
    "answer, named",
    [
        ("There is no red ball.", 0),
        ("There is not a red ball in the picture", 0),
        ("A picture without a cup.", 0),
        ("NO red ball here", 0),
        ("There is no red ball, only a blue box <seg>.", 1),
        ("No cup. The blue box <seg>.", 1),
        ("The cup <seg>; there is no bear.", 1),
        ("The knot on the cup <seg>.", 1),
        ("A notable cup <seg>.", 1),
    ],
)
def test_denials_assert_nothing(answer, named):
    """A denial reaches to the next punctuation; "knot" and "notable" deny nothing."""
    assert mentions(answer, (), NAMES).named == named


def test_names_with_special_characters_are_taken_literally():
    pattern = name_pattern({"a.b", "t-shirt"})
    assert pattern.findall("a.b axb t-shirt") == ["a.b", "t-shirt"]


def test_no_names_is_an_error():
    with pytest.raises(ValueError, match="no names"):
        name_pattern(set())


def test_chair_by_hand():
    """Answers name 3, 0 and 1 things, of which 1, 0 and 1 are made up: CHAIR_i = 2/4, CHAIR_s = 2/3."""
    found = [Mentions(3, 1), Mentions(0, 0), Mentions(1, 1)]
    assert chair_i(found) == pytest.approx(2 / 4)
    assert chair_s(found) == pytest.approx(2 / 3)


def test_chair_of_silence_is_zero():
    assert chair_i([]) == chair_s([]) == 0.0
    assert chair_i([Mentions(0, 0)]) == chair_s([Mentions(0, 0)]) == 0.0


def test_true_answers_of_scenes_hallucinate_nothing(samples):
    pattern = name_pattern({name for s in samples for name in s.objects})
    found = [mentions(q.answer, s.objects, pattern) for s in samples for q in s.questions]
    assert chair_i(found) == 0.0 and sum(m.named for m in found) > 0


@pytest.mark.parametrize(
    "said, true, errors",
    [
        (("red ball",), ("blue ball",), 1),
        (("red ball",), ("red ball",), 0),
        (("red box",), ("red ball",), 0),  # another kind of thing
        (("red ball", "blue ball"), ("blue ball", "red ball"), 0),
        (("red ball", "red ball"), ("red ball", "blue ball"), 1),
        (("red ball", "pink ball"), ("blue ball",), 1),  # one true ball, one error at most
        (("Red Ball",), ("red ball",), 0),
        (("", " "), ("red ball",), 0),
        ((), ("red ball",), 0),
    ],
)
def test_wrong_attributes_are_counted(said, true, errors):
    assert attribute_errors(said, true) == errors
