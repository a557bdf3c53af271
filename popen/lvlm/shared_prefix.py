"""Sequences that share a prefix, packed as a tree into one row: the prefix is computed once.

A picture with three questions, or a preference pair, is one row `[picture | q1 a1 | q2 a2 | q3 a3]` or
`[picture question | chosen | rejected]`. Each token attends to its own branch and that branch's ancestors, and its
position counts along that path, so every branch sees exactly what it would see alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


@dataclass(frozen=True)
class Branch:
    """A run of tokens after its parent's last token; `parent` is an index into the same list, −1 for the root."""

    parent: int
    input_ids: tuple[int, ...]


@dataclass(frozen=True)
class PackedTree:
    """One row: ids, positions and predecessors (S,), attention (S, S) bool, the first column of each branch, and the
    `branch_spans` of each column's branch (2, S)."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predictor: torch.Tensor
    attention: torch.Tensor
    starts: tuple[int, ...]
    spans: torch.Tensor


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
    of_branch = torch.tensor(branch_spans([b.parent for b in branches]), dtype=torch.long).reshape(-1, 2)
    lengths = torch.tensor([len(b.input_ids) for b in branches], dtype=torch.long)
    return PackedTree(
        ids, positions, predictor, attention, tuple(starts), of_branch.repeat_interleave(lengths, dim=0).T
    )


def branch_spans(parents: list[int]) -> list[tuple[int, int]]:
    """(first, end) of each branch in preorder: one is below another, or it, where its first lies in the other's span.

    Args:
        parents: of each branch, an index before its own, −1 for a root.
    """
    sizes = [1] * len(parents)
    for branch in range(len(parents) - 1, -1, -1):
        if parents[branch] >= 0:
            sizes[parents[branch]] += sizes[branch]
    spans, free = [], [0] * (len(parents) + 1)  # where the next child of each branch, and at −1 the next root, begins
    for branch, parent in enumerate(parents):
        first = free[parent]
        free[parent] += sizes[branch]
        free[branch] = first + 1
        spans.append((first, first + sizes[branch]))
    return spans


def only_chains(spans: torch.Tensor) -> bool:
    """Whether each row is one path, so that plain causal attention says what its tree does.

    Args:
        spans: (B, 2, S) of `stack_trees`; padding on the right is nobody's past.
    """
    end = spans[:, 1]
    return bool(((end == end[:, :1]) | (end < 0)).all())  # below every branch lies the last one


def tree_mask_mod(spans: torch.Tensor, readable: torch.Tensor) -> Callable[..., torch.Tensor]:
    """What `attention` says, as FlexAttention asks for it: batch, head, query and key columns to bool.

    Args:
        spans: (B, 2, S) of `stack_trees`. readable: (B, S) bool, columns that others may attend to.
    """
    first, end = spans.unbind(1)

    def mask_mod(batch, head, query, key):
        above = (first[batch, key] <= first[batch, query]) & (first[batch, query] < end[batch, key])
        return (query == key) | ((key <= query) & above & readable[batch, key])

    return mask_mod


def tree_block_mask(spans: torch.Tensor, readable: torch.Tensor) -> BlockMask:
    """The mask of packed rows for FlexAttention, which leaves out blocks that no token attends to.

    Args:
        spans, readable: as of `tree_mask_mod`.
    """
    rows, _, width = spans.shape
    return create_block_mask(tree_mask_mod(spans, readable), rows, None, width, width, device=spans.device)


def stack_trees(trees: list[PackedTree], pad_id: int) -> dict[str, torch.Tensor]:
    """Pads rows on the right: input_ids, position_ids (B, S), a 4-D attention mask (B, 1, S, S) and spans (B, 2, S).

    A padding column attends to itself only, so that no softmax is over nothing.
    """
    width = max(len(t.input_ids) for t in trees)
    ids = torch.full((len(trees), width), pad_id, dtype=torch.long)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    attention = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    spans = torch.full((len(trees), 2, width), -1, dtype=torch.long)  # −1 to −1 holds nothing
    for row, tree in enumerate(trees):
        size = len(tree.input_ids)
        ids[row, :size], positions[row, :size] = tree.input_ids, tree.position_ids
        attention[row, 0, :size, :size] = tree.attention
        spans[row, :, :size] = tree.spans
    return {"input_ids": ids, "position_ids": positions, "attention_mask": attention, "spans": spans}
