"""Packed trees: what each token sees and where it stands, by hand, at random, and through a real model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.lvlm.packing import preference_branches, question_branches, stack_rows
from popen.lvlm.shared_prefix import Branch, only_chains, pack_tree, stack_trees


def outputs(model, processor, rows, square):
    """One forward of packed rows about one picture, and which completion each token and target belongs to."""
    batch = stack_rows(rows, processor.tokenizer.pad_token_id)
    sequence = batch.pop("token_sequence")
    batch.pop("sequence_row")
    with torch.no_grad():
        return model(**batch, pixel_values=processor.pixel_values([square] * len(rows))), sequence, batch


def assert_same(packed, alone):
    for name in ("logps", "embeddings", "mask_logits", "predicted_iou"):
        torch.testing.assert_close(getattr(packed, name), getattr(alone, name), atol=1e-4, rtol=1e-4)


def test_tree_by_hand():
    """Root 10 11; two children, 20 21 and 30, stand side by side at depth 2; 40 follows 21 and never sees 30."""
    tree = pack_tree([Branch(-1, (10, 11)), Branch(0, (20, 21)), Branch(0, (30,)), Branch(1, (40,))])
    assert tree.input_ids.tolist() == [10, 11, 20, 21, 30, 40]
    assert tree.position_ids.tolist() == [0, 1, 2, 3, 2, 4]
    assert tree.predictor.tolist() == [-1, 0, 1, 2, 1, 3]
    assert tree.starts == (0, 2, 4, 5)
    assert tree.attention.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 0, 1],
    ]


@st.composite
def trees(draw):
    parents = [draw(st.integers(-1, index - 1)) for index in range(draw(st.integers(1, 7)))]
    return [(parent, draw(st.integers(1, 4))) for parent in parents]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(trees())
def test_each_token_attends_to_its_path_and_nothing_else(shape):
    """The path of a token, walked from the leaf to the root, gives its attention, position and predictor."""
    tree = pack_tree([Branch(parent, tuple(range(size))) for parent, size in shape])
    column = 0
    for branch, (parent, size) in enumerate(shape):
        assert tree.starts[branch] == column
        ancestors, above = [], parent
        while above >= 0:
            ancestors = [*range(tree.starts[above], tree.starts[above] + shape[above][1]), *ancestors]
            above = shape[above][0]
        for offset in range(size):
            path = ancestors + list(range(column, column + offset + 1))
            seen = tree.attention[column + offset].nonzero()[:, 0].tolist()
            assert seen == sorted(path)
            assert tree.position_ids[column + offset] == len(path) - 1
            assert tree.predictor[column + offset] == (path[-2] if len(path) > 1 else -1)
        column += size


@pytest.mark.parametrize(
    "branches, named",
    [
        ([Branch(-1, ())], "branch 0: 0 tokens"),
        ([Branch(-1, (1,)), Branch(1, (2,))], "branch 1: 1 tokens, parent 1"),
        ([Branch(-1, (1,)), Branch(2, (2,)), Branch(0, (3,))], "branch 1: 1 tokens, parent 2"),
        ([Branch(-2, (1,))], "branch 0: 1 tokens, parent -2"),
    ],
)
def test_impossible_trees_are_refused(branches, named):
    with pytest.raises(ValueError, match=named):
        pack_tree(branches)


def test_padding_attends_to_itself_only():
    stacked = stack_trees([pack_tree([Branch(-1, (5, 6, 7))]), pack_tree([Branch(-1, (8,))])], pad_id=0)
    assert stacked["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert stacked["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert stacked["attention_mask"].shape == (2, 1, 3, 3)
    assert stacked["attention_mask"][1, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_rows_are_chains_where_causal_attention_says_the_same(shapes):
    rows = [pack_tree([Branch(parent, tuple(range(size))) for parent, size in shape]) for shape in shapes]
    causal = all(bool((row.attention == torch.ones_like(row.attention).tril()).all()) for row in rows)
    assert only_chains(stack_trees(rows, pad_id=0)["spans"]) == causal


def test_packed_questions_equal_questions_asked_alone(tiny, samples):
    model, processor = tiny
    square, _ = processor.place(samples[0].image)
    pairs = [(q.question, q.answer) for q in samples[0].questions]
    packed, _, _ = outputs(model, processor, [question_branches(processor, pairs, "x")], square)
    alone, _, _ = outputs(model, processor, [question_branches(processor, [p], "x") for p in pairs], square)
    assert len(packed.embeddings) > 3
    assert_same(packed, alone)


def test_packed_preferences_equal_answers_given_alone(tiny, samples):
    model, processor = tiny
    square, _ = processor.place(samples[1].image)
    question = "Find the green thing."
    answers = "It is the green ball <seg>.", "Here are the blue ring <seg> and the yellow cone <seg>."
    packed, _, _ = outputs(model, processor, [preference_branches(processor, question, *answers, "x")], square)
    alone, _, _ = outputs(
        model, processor, [question_branches(processor, [(question, a)], "x") for a in answers], square
    )
    assert len(packed.embeddings) == 3
    assert_same(packed, alone)


def test_a_branch_that_saw_its_sibling_would_be_noticed(tiny, samples):
    """The control for the two tests above: plain causal attention over the packed row gives other numbers."""
    model, processor = tiny
    square, _ = processor.place(samples[0].image)
    row = question_branches(processor, [(q.question, q.answer) for q in samples[0].questions], "x")
    packed, sequence, batch = outputs(model, processor, [row], square)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"]).tril()
    with torch.no_grad():
        causal = model(**batch, pixel_values=processor.pixel_values([square]))
    difference = (causal.logps - packed.logps).abs()
    assert difference[sequence == 0].max() < 1e-4 and difference[sequence == 1].max() > 1e-2
