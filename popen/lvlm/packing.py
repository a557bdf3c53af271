"""From questions and answers about pictures to the tensors of one forward pass."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from popen.data import rle
from popen.data.safe_io import DataError
from popen.data.sample import Sample
from popen.lvlm.canvas import Canvas
from popen.lvlm.processing_popen import PopenProcessor
from popen.lvlm.shared_prefix import Branch, PackedTree, pack_tree, stack_trees


@dataclass(frozen=True)
class PackedRow:
    """One picture's tree with its completions.

    Per completion token: `predictor`, `labels` (n,) and `sequence` (n,), the completion it belongs to.
    Per target: `target_predictor` (t, L·N) and `target_sequence` (t,).
    """

    tree: PackedTree
    predictor: torch.Tensor
    labels: torch.Tensor
    sequence: torch.Tensor
    target_predictor: torch.Tensor
    target_sequence: torch.Tensor

    def without_targets(self) -> "PackedRow":
        """The same row for text only: no mask is decoded for it."""
        none = {"target_predictor": self.target_predictor[:0], "target_sequence": self.target_sequence[:0]}
        return replace(self, **none)


@dataclass
class _Completions:
    predictor: list = field(default_factory=list)
    labels: list = field(default_factory=list)
    sequence: list = field(default_factory=list)
    target_predictor: list = field(default_factory=list)
    target_sequence: list = field(default_factory=list)


def pack_row(branches: list[Branch], completions: list[tuple[int, int]], seg_token_ids: tuple[int, ...]) -> PackedRow:
    """Packs a tree and finds the completion tokens and `[SEG…]` groups in it.

    Args:
        branches: the tree, root first.
        completions: (branch, offset) pairs; the branch's tokens from `offset` on are a completion.
    Raises:
        ValueError: a completion holds a broken `[SEG…]` group.
    """
    tree = pack_tree(branches)
    found = _Completions()
    size = len(seg_token_ids)
    for sequence, (branch, offset) in enumerate(completions):
        start, ids = tree.starts[branch], branches[branch].input_ids
        columns = range(start + offset, start + len(ids))
        found.predictor += tree.predictor[columns.start : columns.stop].tolist()
        found.labels += ids[offset:]
        found.sequence += [sequence] * len(columns)
        at = offset
        while at < len(ids):
            if ids[at] not in seg_token_ids:
                at += 1
            elif tuple(ids[at : at + size]) == seg_token_ids:
                found.target_predictor.append(tree.predictor[start + at : start + at + size].tolist())
                found.target_sequence.append(sequence)
                at += size
            else:
                raise ValueError(f"completion {sequence}: a broken [SEG…] group at token {at - offset}")
    return PackedRow(
        tree,
        torch.tensor(found.predictor, dtype=torch.long),
        torch.tensor(found.labels, dtype=torch.long),
        torch.tensor(found.sequence, dtype=torch.long),
        torch.tensor(found.target_predictor, dtype=torch.long).reshape(-1, size),
        torch.tensor(found.target_sequence, dtype=torch.long),
    )


def stack_rows(rows: list[PackedRow], pad_id: int) -> dict[str, torch.Tensor]:
    """The model's inputs for B rows, without pictures; sequences are numbered through the batch.

    Adds `token_sequence` (N,), `target_group` (T,) and `sequence_row` (number of sequences,).
    """
    counts = [int(max([*row.sequence.tolist(), *row.target_sequence.tolist()], default=-1)) + 1 for row in rows]
    first = [sum(counts[:i]) for i in range(len(rows))]
    return stack_trees([row.tree for row in rows], pad_id) | {
        "token_row": torch.cat([torch.full_like(row.predictor, i) for i, row in enumerate(rows)]),
        "token_predictor": torch.cat([row.predictor for row in rows]),
        "token_labels": torch.cat([row.labels for row in rows]),
        "token_sequence": torch.cat([row.sequence + first[i] for i, row in enumerate(rows)]),
        "target_row": torch.cat([torch.full_like(row.target_sequence, i) for i, row in enumerate(rows)]),
        "target_predictor": torch.cat([row.target_predictor for row in rows]),
        "target_group": torch.cat([row.target_sequence + first[i] for i, row in enumerate(rows)]),
        "sequence_row": torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts)),
    }


def question_branches(processor: PopenProcessor, pairs: list[tuple[str, str]], name: str) -> PackedRow:
    """One picture, many (question, answer) pairs: `[picture | q1 a1 | q2 a2 | …]`, answers are completions.

    Raises:
        DataError: a question and its answer do not fit the context; names `name` and the question's number.
    """
    branches, completions = [Branch(-1, processor.prefix_ids)], []
    for number, (question, answer) in enumerate(pairs):
        question_ids = processor.question_ids(question, f"{name}, question {number}")
        answer_ids = processor.answer_ids(answer, f"{name}, question {number}")
        _check_length(processor, len(question_ids) + len(answer_ids), f"{name}, question {number}")
        branches.append(Branch(0, question_ids + answer_ids))
        completions.append((len(branches) - 1, len(question_ids)))
    return pack_row(branches, completions, processor.seg_token_ids)


def preference_branches(processor: PopenProcessor, question: str, chosen: str, rejected: str, name: str) -> PackedRow:
    """A preference pair on one prefix: `[picture question | chosen | rejected]`; completion 0 is the chosen one."""
    prompt = processor.prefix_ids + processor.question_ids(question, name)
    answers = processor.answer_ids(chosen, name), processor.answer_ids(rejected, name)
    _check_length(processor, len(prompt) - len(processor.prefix_ids) + max(map(len, answers)), name)
    branches = [Branch(-1, prompt), *(Branch(0, ids) for ids in answers)]
    return pack_row(branches, [(1, 0), (2, 0)], processor.seg_token_ids)


def _check_length(processor: PopenProcessor, tokens: int, name: str) -> None:
    total = len(processor.prefix_ids) + tokens
    if total > processor.max_length:
        raise DataError(
            f"{name}: {total} tokens with picture and answer, the context holds {processor.max_length}: "
            "shorten them, or raise max_length in the model's popen_processor.json"
        )


def supervised_batch(processor: PopenProcessor, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Everything `PopenForReasoningSegmentation.forward` takes, for samples with all their questions."""
    rows, squares, masks, valid, phrases = [], [], [], [], []
    for sample in samples:
        square, canvas = processor.place(sample.image, sample.image_id)
        squares.append(square)
        rows.append(question_branches(processor, [(q.question, q.answer) for q in sample.questions], sample.image_id))
        masks += [canvas_masks(canvas, question) for question in sample.questions]
        phrases += [processor.phrase_ids(phrase) for q in sample.questions for phrase in q.phrases]
        valid.append(canvas.valid(sample.decoded_ignore()))
    batch = stack_rows(rows, processor.tokenizer.pad_token_id)
    return batch | {
        "pixel_values": processor.pixel_values(squares),
        "target_masks": torch.cat(masks) if masks else torch.zeros(0, processor.image_size, processor.image_size),
        "target_phrases": pad_phrases(phrases),
        "valid": torch.stack(valid),
        **look_columns(batch["target_row"], batch["target_predictor"], [len(phrase) + 1 for phrase in phrases]),
    }


def look_columns(row: torch.Tensor, predictor: torch.Tensor, lengths: list[int]) -> dict[str, torch.Tensor]:
    """The tokens from before a target's phrase to its end: each predicts a word of it or its first `[SEG…]`.

    Args:
        row, predictor: (T,) and (T, L·N) of the targets. lengths: tokens of each phrase and of the blank after it,
            which stand before `[SEG0]`.
    """
    counts = torch.tensor([length + 1 for length in lengths], dtype=torch.long)
    target = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    back = torch.cat([torch.arange(length, -1, -1) for length in lengths]) if lengths else target
    return {
        "look_row": row[target],
        "look_column": predictor[:, 0][target] - back,
        "look_target": target,
    }


def alignment_batch(processor: PopenProcessor, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """What the model takes to align each distinct target with its phrase; no question is read."""
    squares, masks, phrases, rows, valid = [], [], [], [], []
    for row, sample in enumerate(samples):
        square, canvas = processor.place(sample.image, sample.image_id)
        squares.append(square)
        named = {
            (phrase, mask["counts"]): mask
            for question in sample.questions
            for phrase, mask in zip(question.phrases, question.masks, strict=True)
        }
        if named:
            masks.append(canvas.place_masks(np.stack([rle.decode(mask) for mask in named.values()])))
        phrases += [processor.phrase_ids(phrase) for phrase, _ in named]
        rows += [row] * len(named)
        valid.append(canvas.valid(sample.decoded_ignore()))
    return {
        "pixel_values": processor.pixel_values(squares),
        "target_row": torch.tensor(rows, dtype=torch.long),
        "target_masks": torch.cat(masks) if masks else torch.zeros(0, processor.image_size, processor.image_size),
        "target_phrases": pad_phrases(phrases),
        "valid": torch.stack(valid),
    }


def pad_phrases(phrases: list[tuple[int, ...]]) -> torch.Tensor:
    """Token ids of phrases, (T, W), padded with −1."""
    width = max(map(len, phrases), default=1)
    return torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in phrases], dtype=torch.long).reshape(-1, width)


def canvas_masks(canvas: Canvas, question) -> torch.Tensor:
    """A question's true masks on the canvas, (T, side, side) in 0..1."""
    return canvas.place_masks(question.decoded_masks(canvas.height, canvas.width))
