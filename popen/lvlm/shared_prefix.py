"""Sequences that share a prefix, packed as a tree into one row: the prefix is computed once.

A picture with three questions, or a preference pair, is one row `[picture | q1 a1 | q2 a2 | q3 a3]` or
`[picture question | chosen | rejected]`. Each token attends to its own branch and that branch's ancestors, and its
position counts along that path, so every branch sees exactly what it would see alone.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Branch:
    """A run of tokens after its parent's last token; `parent` is an index into the same list, −1 for the root."""

    parent: int
    input_ids: tuple[int, ...]


@dataclass(frozen=True)
class PackedTree:
    """One row: ids, positions and predecessors (S,), attention (S, S) bool, and the first column of each branch."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predictor: torch.Tensor
    attention: torch.Tensor
    starts: tuple[int, ...]


def pack_tree(branches: list[Branch]) -> PackedTree:
    """Lays the branches out one after another.

    `predictor[i]` is the column whose hidden state predicts token i: the column before it in its branch or, at a
    branch's start, the parent's last column (−1 for the root's first token).

    Raises:
        ValueError: a branch is empty, or its parent does not come before it.
    """
    length = sum(len(b.input_ids) for b in branches)
    ids, positions = torch.empty(length, dtype=torch.long), torch.empty(length, dtype=torch.long)
    predictor = torch.empty(length, dtype=torch.long)
    attention = torch.zeros(length, length, dtype=torch.bool)
    starts, ends = [], []
    column = 0
    for index, branch in enumerate(branches):
        size = len(branch.input_ids)
        if size == 0 or not -1 <= branch.parent < index:
            raise ValueError(
                f"branch {index}: {size} tokens, parent {branch.parent}; parents come first, none is empty"
            )
        here = slice(column, column + size)
        ids[here] = torch.tensor(branch.input_ids)
        before = ends[branch.parent] - 1 if branch.parent >= 0 else -1
        depth = int(positions[before]) + 1 if before >= 0 else 0
        positions[here] = torch.arange(depth, depth + size)
        predictor[here] = torch.arange(column - 1, column + size - 1)
        predictor[column] = before
        if before >= 0:
            attention[here, : ends[branch.parent]] = attention[before, : ends[branch.parent]]
        attention[here, here] = torch.ones(size, size, dtype=torch.bool).tril()
        starts.append(column)
        column += size
        ends.append(column)
    return PackedTree(ids, positions, predictor, attention, tuple(starts))


def stack_trees(trees: list[PackedTree], pad_id: int) -> dict[str, torch.Tensor]:
    """Pads rows on the right: input_ids, position_ids (B, S) and a 4-D attention mask (B, 1, S, S).

    A padding column attends to itself only, so that no softmax is over nothing.
    """
    width = max(len(t.input_ids) for t in trees)
    ids = torch.full((len(trees), width), pad_id, dtype=torch.long)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    attention = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    for row, tree in enumerate(trees):
        size = len(tree.input_ids)
        ids[row, :size], positions[row, :size] = tree.input_ids, tree.position_ids
        attention[row, 0, :size, :size] = tree.attention
    return {"input_ids": ids, "position_ids": positions, "attention_mask": attention}
