"""Questions that do not fit are told before the first step, with picture, question and the way out."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.safe_io import DataError
from popen.data.schema import Question, write_dataset
from popen.lvlm.lengths import check_lengths, no_answer
from popen.lvlm.mining import MiningArguments, mine
from popen.training import SegmentationSFTTrainer, SFTArguments

LETTERS = st.characters(max_codepoint=0x7E) | st.sampled_from("éß中🙂")


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory, samples):
    """Two scenes; the second has a question with 34 targets, as MUSE has, and a shorter one that is too long, too."""
    mask = next(q.masks[0] for q in samples[0].questions if q.masks)
    many = [
        Question(f"many/{n}", "reasoning", "What is here?", "A small red cup <seg>, " * n, ("cup",) * n, (mask,) * n)
        for n in (20, 34)
    ]
    grown = replace(samples[0], image_id="muse/val/9", questions=(*samples[0].questions, *many))
    return write_dataset([samples[1], grown], tmp_path_factory.mktemp("long"), "train")


def tokens_of(processor, question, answer):
    prompt = (*processor.prefix_ids, *processor.question_ids(question))
    return len(prompt) + len(processor.answer_ids(answer))


def refusal(processor):
    tokens = tokens_of(processor, "What is here?", "A small red cup <seg>, " * 34)
    return (
        rf"^muse/val/9/many/34: {tokens} tokens with picture and answer \(34 targets\), the context holds 256; "
        rf"2 questions do not fit, [^\n]* max_length in the model's popen_processor\.json to {tokens} or more, [^\n]*$"
    )


def test_the_longest_is_named(tiny, long_rows):
    with pytest.raises(DataError, match=refusal(tiny[1])):
        check_lengths(tiny[1], long_rows)


def test_what_is_not_read_need_not_fit(tiny, long_rows):
    check_lengths(tiny[1], long_rows, no_answer)
    check_lengths(tiny[1], long_rows, lambda answer: None if answer.count("<seg>") > 2 else answer)
    check_lengths(tiny[1], long_rows.select([0]))


def test_a_question_too_long_is_named_in_free_generation_too(tiny, samples, tmp_path):
    (first, *others) = samples[0].questions
    rows = [replace(samples[0], questions=(replace(first, question="Where is it? " * 100), *others))]
    with pytest.raises(DataError, match=rf"^{samples[0].image_id}/{first.id}: the question has \d+ tokens"):
        check_lengths(tiny[1], write_dataset(rows, tmp_path, "train"), no_answer)


def test_training_does_not_begin(tiny, long_rows, tmp_path):
    args = SFTArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(DataError, match=refusal(tiny[1])):
        SegmentationSFTTrainer(tiny[0], args, train_dataset=long_rows, processor=tiny[1])


def test_mining_does_not_begin(tiny, long_rows, tmp_path):
    with pytest.raises(DataError, match=refusal(tiny[1])):
        mine(*tiny, long_rows, range(2), "m", tmp_path / "mined", MiningArguments())
    assert not (tmp_path / "mined").exists()


@settings(max_examples=200, deadline=None)
@given(st.text(LETTERS, max_size=60), st.lists(st.text(LETTERS, max_size=30), min_size=1, max_size=4))
def test_most_tokens_is_never_too_few(tiny, question, pieces):
    processor, answer = tiny[1], "<seg>".join(pieces)
    if not question.strip():
        return
    try:
        tokens = tokens_of(processor, question, answer)
    except DataError:  # a control token
        return
    assert tokens <= processor.most_tokens(question, answer)
