"""The processor: words to tokens and back, broken groups, questions it refuses, files."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from popen.data.safe_io import DataError
from popen.data.schema import SEG
from popen.lvlm.processing_popen import SETTINGS_FILE, PopenProcessor, phrase_before

ANSWERS = [
    ("There is no pink thing here.", ()),
    ("It is the red ball <seg>.", ("red ball",)),
    ("The blue cone <seg>, a red ball <seg> and the star <seg> are here.", ("blue cone", "red ball", "star")),
]


@pytest.fixture(scope="module")
def processor(tiny):
    return tiny[1]


def words(processor, text):
    return list(processor.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("answer, phrases", ANSWERS)
def test_answers_come_back(processor, answer, phrases):
    ids = processor.answer_ids(answer)
    decoded = processor.decode_answer(ids)
    assert (decoded.text, decoded.phrases, decoded.incomplete) == (answer, phrases, 0)
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert [tuple(ids[i] for i in group) for group in decoded.groups] == [processor.seg_token_ids] * len(phrases)


def test_nothing_after_the_end_is_read(processor):
    ids = processor.answer_ids("Yes.") + processor.answer_ids("It is the red ball <seg>.")
    assert processor.decode_answer(list(ids)).text == "Yes."
    assert processor.decode_answer([]).text == ""


@pytest.mark.parametrize(
    "tail, groups, incomplete",
    [
        ((0, 1, 2), [], 1),  # broken off at the end
        ((0, 1, 0, 1, 2, 3), [(2, 3, 4, 5)], 1),  # broken off by the next one
        ((2, 3, 0, 1, 2, 3), [(2, 3, 4, 5)], 1),  # begins in the middle
        ((0, 0, 1, 2, 3), [(1, 2, 3, 4)], 1),
        ((0, 2, 1, 3), [], 1),  # all there, in the wrong order
        ((0, 1, 2, 3, 0, 1, 2, 3), [(0, 1, 2, 3), (4, 5, 6, 7)], 0),
        ((0, 1, 2, 3, 3), [(0, 1, 2, 3)], 1),
    ],
)
def test_broken_groups_are_dropped_and_counted(processor, tail, groups, incomplete):
    """Numbers stand for [SEG0] … [SEG3] behind "the red ball"; columns of whole groups are counted from there."""
    head, end = words(processor, "the red ball "), words(processor, " is here.")
    decoded = processor.decode_answer(head + [processor.seg_token_ids[i] for i in tail] + end)
    assert decoded.groups == tuple(tuple(len(head) + i for i in group) for group in groups)
    assert decoded.incomplete == incomplete
    assert decoded.text == "the red ball " + SEG * len(groups) + " is here."
    assert decoded.phrases[:1] == ("red ball",) * bool(groups)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(-1, 3), max_size=24))
def test_any_sequence_of_tokens_decodes(tiny, tokens):
    """Whole groups are the non-overlapping runs 0123; as many `<seg>`, phrases and groups, all at their columns."""
    processor = tiny[1]
    word = words(processor, "x")[0]
    ids = [word if t < 0 else processor.seg_token_ids[t] for t in tokens]
    decoded = processor.decode_answer(ids)
    whole = "".join("x" if t < 0 else str(t) for t in tokens).count("0123")
    assert len(decoded.groups) == len(decoded.phrases) == decoded.text.count(SEG) == whole
    assert all(tuple(ids[i] for i in group) == processor.seg_token_ids for group in decoded.groups)
    assert decoded.text.count("x") == tokens.count(-1)
    assert (decoded.incomplete > 0) == (sum(t >= 0 for t in tokens) > 4 * whole)


@pytest.mark.parametrize("text", ["the tag " + SEG + " is", "[SEG0] it is"])
def test_control_tokens_spelled_out_in_bytes_are_words_and_no_targets(processor, text):
    """A model can write "<seg>" letter by letter. Its text, written out again, must not gain targets it never had."""
    spelled = [i for letter in text for i in words(processor, letter)]
    assert not set(spelled) & set(processor.seg_token_ids)
    decoded = processor.decode_answer(spelled)
    assert decoded.groups == () and SEG not in decoded.text
    assert not set(processor.answer_ids(decoded.text)) & set(processor.seg_token_ids)


@pytest.mark.parametrize(
    "text, phrase",
    [
        ("It is the red ball ", "red ball"),
        ("The red ball", "red ball"),
        ("An apple", "apple"),
        ("Sure, a red ball", "red ball"),
        (" and the blue cone", "blue cone"),
        ("left of the table stands the lamp", "lamp"),
        ("Here it is: old lamp", "old lamp"),
        ("red ball", "red ball"),
        ("the theatre", "theatre"),
        ("", ""),
        ("...", ""),
    ],
)
def test_phrase_before(text, phrase):
    assert phrase_before(text) == phrase


@pytest.mark.parametrize("question", ["", "   ", "\n"])
def test_an_empty_question_is_refused(processor, question):
    with pytest.raises(DataError, match="question 7: the question is empty"):
        processor.question_ids(question, "question 7")


@pytest.mark.parametrize("token", [SEG, "<image>", "[SEG0]", "[SEG3]", "<eos>", "<pad>"])
def test_control_tokens_in_a_question_are_refused(processor, token):
    with pytest.raises(DataError, match="question 7: the question holds a control token"):
        processor.question_ids(f"Find the {token} ball.", "question 7")


def test_a_question_must_leave_room_for_an_answer(processor):
    """The last question that is accepted and one group, one word and EOS fill the context; a token more is refused."""
    short = processor.question_ids("x" * 10)
    room = processor.max_length - len(processor.prefix_ids) - len(processor.seg_token_ids) - 2
    letters = 10 + room - len(short)
    assert len(processor.question_ids("x" * letters)) == room
    with pytest.raises(DataError, match=rf"question 7: the question has {room + 1} tokens, .* room for {room}"):
        processor.question_ids("x" * (letters + 1), "question 7")


def test_prompt_reads_as_the_chat_template(processor):
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert processor.prefix_ids == (image,) * 64
    assert processor.tokenizer.decode(processor.question_ids(" Find it. ")) == "USER: Find it.\nASSISTANT: "


def test_place_and_pixels(processor):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 80, 3), np.uint8))
    square, canvas = processor.place(picture)
    assert square.size == (96, 96) and (canvas.height, canvas.width) == (50, 80)
    assert processor.pixel_values([square, square]).shape == (2, 3, 96, 96)
    with pytest.raises(DataError, match="image 3: not a PIL image"):
        processor.place(np.zeros((50, 80, 3), np.uint8), "image 3")


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = PopenProcessor.from_pretrained(tmp_path)
    for name in ("image_size", "max_length", "seg_token_ids", "prefix_ids"):
        assert getattr(loaded, name) == getattr(processor, name)
    assert loaded.question_ids("Find the ball.") == processor.question_ids("Find the ball.")
    for answer, _ in ANSWERS:
        assert loaded.answer_ids(answer) == processor.answer_ids(answer)
    square, _ = processor.place(Image.effect_noise((96, 96), 50).convert("RGB"))
    assert torch.equal(loaded.pixel_values([square]), processor.pixel_values([square]))


def test_other_folders_are_refused(processor, tmp_path):
    processor.backbone.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=f"no {SETTINGS_FILE} in it; this is not a popen model folder"):
        PopenProcessor.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        PopenProcessor.from_pretrained(tmp_path / "nowhere")


def test_a_tokenizer_without_seg_tokens_is_refused(processor):
    with pytest.raises(ValueError, match=r"lacks \[SEG0\]"):
        PopenProcessor(processor.backbone, 96, codebook_size=5, max_length=256)
