"""Corrections change hallucinated phrases and nothing else; changed tokens by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.preference.correcting import PHRASES, REWRITTEN, Correction, changed_tokens, correct_with_truth

ONE = "It is the {} <seg>."
TWO = "Here are the {} <seg> and the {} <seg>."
A, B, C, D = "red ball", "blue cone", "pink box", "teal ring"


def corrected(template, phrases, true_template, true_phrases):
    return correct_with_truth(
        template.format(*phrases), phrases, true_template.format(*true_phrases), true_phrases, "<seg>"
    )


@pytest.mark.parametrize("phrases", [(A, B), (B, A)])
def test_the_truth_in_any_order_needs_no_correction(phrases):
    assert corrected(TWO, phrases, TWO, (A, B)) is None


@pytest.mark.parametrize(
    "own, truth, right",
    [
        ((A,), (B,), (B,)),  # one of one
        ((A, C), (A, B), (A, B)),  # one of two
        ((C, B), (A, B), (A, B)),
        ((C, D), (A, B), (A, B)),  # both, in reading order
        ((A, A), (A, B), (A, B)),  # the second time it is wrong
        ((A, B), (A, A), (A, A)),
        ((B, C), (A, B), (B, A)),  # the right one keeps its place, the other is replaced
        ((C, A), (A, B), (B, A)),
    ],
)
def test_wrong_phrases_are_replaced_and_right_ones_kept(own, truth, right):
    template = ONE if len(own) == 1 else TWO
    assert corrected(template, own, template, truth) == Correction(template.format(*right), PHRASES)


@pytest.mark.parametrize(
    "template, own, true_template, truth",
    [
        (ONE, (A,), TWO, (A, B)),  # too few
        (TWO, (A, B), ONE, (A,)),  # too many
        (ONE, (A,), "There is no red ball here.", ()),
        ("There is no red ball here.", (), ONE, (A,)),
        ("There is no ball.", (), "There is no cone.", ()),
        (ONE, (A,), "The {} <seg> is left of it.", (A,)),  # right phrase, other words
        (ONE, (A,), "The {} <seg> is left of it.", (B,)),
        ("{} <seg>", ("",), ONE, (A,)),  # a group after no words
    ],
)
def test_other_mistakes_take_the_truth(template, own, true_template, truth):
    assert corrected(template, own, true_template, truth) == Correction(true_template.format(*truth), REWRITTEN)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([A, B, C, D]), max_size=3), st.lists(st.sampled_from([A, B, C, D]), max_size=3))
def test_a_correction_says_what_the_truth_says(own, truth):
    """Whatever was said, the corrected answer names the true phrases, as often; corrected again it stays."""

    def sentence(phrases):
        return "Here: " + ", ".join(f"the {p} <seg>" for p in phrases) + "."

    correction = correct_with_truth(sentence(own), tuple(own), sentence(truth), tuple(truth), "<seg>")
    if correction is None:
        assert sorted(own) == sorted(truth)
        return
    said = tuple(part.removeprefix("the ") for part in correction.text[6:-1].replace(" <seg>", "").split(", ") if part)
    assert sorted(said) == sorted(truth) and correction.text != sentence(own)
    assert correct_with_truth(correction.text, said, sentence(truth), tuple(truth), "<seg>") is None
    if len(own) == len(truth) > 0:
        assert correction.kind == PHRASES
        kept = sum(a == b for a, b in zip(own, said, strict=True))
        assert kept == sum(min(own.count(p), truth.count(p)) for p in set(own))


@pytest.mark.parametrize(
    "chosen, rejected, in_chosen, in_rejected",
    [
        ((1, 2, 3), (1, 2, 3), "...", "..."),
        ((1, 5, 3), (1, 2, 3), ".x.", ".x."),
        ((1, 5, 6, 3), (1, 2, 3), ".xx.", ".x."),
        ((1, 3), (1, 2, 3), "..", ".x."),  # only the original has it
        ((1, 2, 3), (1, 3), ".x.", ".."),
        ((7, 8), (1, 2, 3), "xx", "xxx"),
        ((5, 1, 2, 9, 3), (4, 1, 2, 8, 3), "x..x.", "x..x."),
        ((), (1,), "", "x"),
    ],
)
def test_changed_tokens_by_hand(chosen, rejected, in_chosen, in_rejected):
    found = changed_tokens(chosen, rejected)
    assert found == ([m == "x" for m in in_chosen], [m == "x" for m in in_rejected])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 4), max_size=12))
def test_unchanged_tokens_are_the_same_sequence(chosen, rejected):
    in_chosen, in_rejected = changed_tokens(tuple(chosen), tuple(rejected))
    kept = [t for t, changed in zip(chosen, in_chosen, strict=True) if not changed]
    assert kept == [t for t, changed in zip(rejected, in_rejected, strict=True) if not changed]
