"""Completions, their labels and predictors, and whole batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from popen.data.safe_io import DataError
from popen.data.schema import empty_ignore
from popen.lvlm.packing import (
    look_columns,
    pack_row,
    preference_branches,
    question_branches,
    stack_rows,
    supervised_batch,
)
from popen.lvlm.shared_prefix import Branch

SEGS = (7, 8)
TREE = [Branch(-1, (1, 2)), Branch(0, (3, 4, 7, 8, 5)), Branch(0, (6, 9, 5))]


def test_completions_by_hand():
    """Columns: 1 2 | 3 4 7 8 5 | 6 9 5. Both completions begin at their branch's second token.

    4 7 8 5 stand at columns 3 … 6 and are predicted one column before; 9 5 at columns 8 and 9.
    """
    row = pack_row(TREE, [(1, 1), (2, 1)], SEGS)
    assert row.labels.tolist() == [4, 7, 8, 5, 9, 5]
    assert row.predictor.tolist() == [2, 3, 4, 5, 7, 8]
    assert row.sequence.tolist() == [0, 0, 0, 0, 1, 1]
    assert row.target_predictor.tolist() == [[3, 4]]
    assert row.target_sequence.tolist() == [0]


def test_a_completion_from_the_start_of_a_branch_is_predicted_by_its_parent():
    row = pack_row(TREE, [(2, 0)], SEGS)
    assert row.labels.tolist() == [6, 9, 5] and row.predictor.tolist() == [1, 7, 8]
    assert row.target_predictor.shape == (0, 2) and row.target_sequence.shape == (0,)


def test_a_group_at_the_start_of_a_branch():
    row = pack_row([Branch(-1, (1, 2)), Branch(0, (3,)), Branch(0, (7, 8, 7, 8))], [(1, 0), (2, 0)], SEGS)
    assert row.target_predictor.tolist() == [[1, 3], [4, 5]] and row.target_sequence.tolist() == [1, 1]


def test_look_columns_by_hand():
    """Two targets whose `[SEG0]` is predicted at columns 9 and 5; three and one tokens before it name them."""
    row, predictor = torch.tensor([0, 1]), torch.tensor([[9, 10], [5, 6]])
    found = look_columns(row, predictor, [3, 1])
    assert found["look_column"].tolist() == [6, 7, 8, 9, 4, 5]
    assert found["look_row"].tolist() == [0, 0, 0, 0, 1, 1] and found["look_target"].tolist() == [0, 0, 0, 0, 1, 1]


def test_no_targets_are_not_looked_at():
    none = torch.zeros(0, dtype=torch.long)
    assert all(len(column) == 0 for column in look_columns(none, none.reshape(0, 4), []).values())


def test_without_targets_keeps_the_words():
    row = pack_row(TREE, [(1, 1), (2, 1)], SEGS).without_targets()
    assert row.labels.tolist() == [4, 7, 8, 5, 9, 5]
    assert row.target_predictor.shape == (0, 2) and row.target_sequence.shape == (0,)


@pytest.mark.parametrize("ids, at", [((3, 7, 5), 1), ((8, 7, 8), 0), ((7, 8, 7), 2)])
def test_broken_groups_are_refused(ids, at):
    with pytest.raises(ValueError, match=rf"completion 0: a broken \[SEG…\] group at token {at}"):
        pack_row([Branch(-1, (1,)), Branch(0, ids)], [(1, 0)], SEGS)


def test_stack_rows_numbers_sequences_through_the_batch():
    """Rows of two, one and two completions: sequences 0 1 | 2 | 3 4, targets in 0, 2 and 3."""
    two = pack_row(TREE, [(1, 1), (2, 1)], SEGS)
    one = pack_row([Branch(-1, (1,)), Branch(0, (7, 8))], [(1, 0)], SEGS)
    batch = stack_rows([two, one, two], pad_id=0)
    assert batch["input_ids"].shape == (3, 10)
    assert batch["token_sequence"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4]
    assert batch["token_row"].tolist() == [0] * 6 + [1] * 2 + [2] * 6
    assert batch["token_predictor"].tolist() == [2, 3, 4, 5, 7, 8, 0, 1, 2, 3, 4, 5, 7, 8]
    assert batch["target_row"].tolist() == [0, 1, 2]
    assert batch["target_predictor"].tolist() == [[3, 4], [0, 1], [3, 4]]
    assert batch["target_group"].tolist() == [0, 2, 3]
    assert batch["sequence_row"].tolist() == [0, 0, 1, 2, 2]


def test_stacking_text_rows_first_keeps_the_numbers():
    two = pack_row(TREE, [(1, 1), (2, 1)], SEGS)
    batch = stack_rows([two.without_targets(), two], pad_id=0)
    assert batch["target_row"].tolist() == [1] and batch["target_group"].tolist() == [2]


def test_labels_are_the_answers(tiny, samples):
    _, processor = tiny
    pairs = [(q.question, q.answer) for q in samples[0].questions]
    row = question_branches(processor, pairs, "x")
    for number, (_, answer) in enumerate(pairs):
        assert tuple(row.labels[row.sequence == number].tolist()) == processor.answer_ids(answer)
        assert (row.target_sequence == number).sum() == answer.count("<seg>")
    pair = preference_branches(processor, "Find it.", pairs[0][1], pairs[1][1], "x")
    for side in (0, 1):
        assert tuple(pair.labels[pair.sequence == side].tolist()) == processor.answer_ids(pairs[side][1])


def test_too_long_answers_name_the_picture(tiny):
    _, processor = tiny
    long = "ball " * 200
    with pytest.raises(
        DataError, match=r"scene-5, question 1: \d+ tokens with picture and answer, the context holds 256"
    ):
        question_branches(processor, [("Find it.", "Yes."), ("Find it.", long)], "scene-5")
    for answers in ((long, "Yes."), ("Yes.", long)):
        with pytest.raises(DataError, match=r"scene-5: .* the context holds 256"):
            preference_branches(processor, "Find it.", *answers, "scene-5")


@pytest.mark.parametrize("answer", ["It is [SEG0] there.", "It is <image> there."])
def test_control_tokens_in_an_answer_name_the_picture(tiny, answer):
    _, processor = tiny
    with pytest.raises(DataError, match="scene-5, question 0"):
        question_branches(processor, [("Find it.", answer)], "scene-5")


def test_many_short_questions_may_exceed_the_context_together(tiny):
    """Every branch counts from the picture: 40 questions are 40 short contexts."""
    _, processor = tiny
    row = question_branches(processor, [("Find the ball.", "It is the red ball <seg>.")] * 40, "x")
    assert len(row.tree.input_ids) > processor.max_length > row.tree.position_ids.max()


def test_supervised_batch(tiny, samples):
    _, processor = tiny
    batch = supervised_batch(processor, samples[:3])
    questions = [q for s in samples[:3] for q in s.questions]
    assert any(not q.masks for q in questions)
    targets = sum(len(q.masks) for q in questions)
    tokens = sum(len(processor.answer_ids(q.answer)) for q in questions)
    assert batch["pixel_values"].shape == (3, 3, 96, 96) and batch["valid"].shape == (3, 96, 96)
    assert batch["target_masks"].shape == (targets, 96, 96) and batch["target_predictor"].shape == (targets, 4)
    assert batch["token_labels"].shape == (tokens,) and batch["sequence_row"].shape == (len(questions),)
    owner = [number for number, q in enumerate(questions) for _ in q.masks]
    assert batch["target_group"].tolist() == owner
    truth = np.concatenate([q.decoded_masks(96, 96) for q in questions])
    assert (batch["target_masks"].numpy() == truth).all()  # scale 1: nothing is resampled
    tokens = batch["input_ids"][batch["look_row"], batch["look_column"]]
    said = [processor.tokenizer.decode(tokens[batch["look_target"] == t]).split() for t in range(targets)]
    phrases = [phrase for q in questions for phrase in q.phrases]
    assert [" ".join(words[1:]) for words in said] == phrases  # after the article that predicts the first word
    after = batch["target_predictor"][batch["look_target"], 0]
    assert (batch["look_column"] <= after).all() and set(after.tolist()) <= set(batch["look_column"].tolist())


def test_a_batch_without_targets_has_a_loss(tiny, samples):
    model, processor = tiny
    none = [replace(s, questions=tuple(q for q in s.questions if not q.masks)) for s in samples[:2]]
    batch = supervised_batch(processor, none)
    assert batch["target_masks"].shape == (0, 96, 96)
    with torch.no_grad():
        output = model(**{k: v for k, v in batch.items() if k not in ("token_sequence", "sequence_row")})
    assert output.loss.isfinite() and output.ce_loss > 0
    assert output.bce_loss == output.dice_loss == output.quality_loss == output.look_loss == output.name_loss == 0


def test_a_picture_without_questions(tiny, samples):
    """The schema allows it; it adds nothing to the batch."""
    model, processor = tiny
    batch = supervised_batch(processor, [samples[0], replace(samples[1], questions=())])
    alone = supervised_batch(processor, samples[:1])
    assert len(batch["pixel_values"]) == 2 and torch.equal(batch["token_labels"], alone["token_labels"])
    with torch.no_grad():
        output = model(**{k: v for k, v in batch.items() if k not in ("token_sequence", "sequence_row")})
    assert output.loss.isfinite()


def test_padding_of_an_oblong_picture_is_not_valid(tiny, samples):
    _, processor = tiny
    wide = samples[0].image.crop((0, 0, 96, 40))
    none = tuple(q for q in samples[0].questions if not q.masks)
    batch = supervised_batch(processor, [replace(samples[0], image=wide, ignore=empty_ignore(40, 96), questions=none)])
    assert batch["valid"][0, :40].all() and not batch["valid"][0, 40:].any()
