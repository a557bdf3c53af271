import pytest

from popen.data.schema import SEG
from popen.data.target_question import ANSWER, DENIAL, PHRASE, ask_phrase, ask_reason, ask_sentence


@pytest.mark.parametrize(
    ("ask", "question"),
    [
        (ask_phrase, "What is the red cup in this image? Please output segmentation mask."),
        (ask_sentence, "the red cup Please output segmentation mask."),
        (ask_reason, "the red cup Please output segmentation mask and explain why."),
    ],
)
def test_the_words_of_lisa(ask, question):
    assert ask(" the red cup\n") == question


def test_one_mask_stands_after_the_phrase_and_none_in_a_denial():
    assert ANSWER.split(SEG) == [f"The {PHRASE} ", " is here."]
    assert SEG not in DENIAL and DENIAL.startswith(
        "There is no"
    )  # what the count of hallucinations takes for a denial
