"""From pictures and questions to drafts: one batched, KV-cached generation, or teacher forcing, then mask decodes."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import LogitsProcessorList

from popen.lvlm.canvas import Canvas
from popen.lvlm.encoded_pictures import EncodedPictures
from popen.lvlm.gallery import Gallery
from popen.lvlm.generation import generate
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.packing import question_branches, stack_rows
from popen.lvlm.pass_size import rows_per_pass
from popen.lvlm.processing_popen import DecodedAnswer, PopenProcessor
from popen.lvlm.seeded_sampling import SeededSampling

MOST_BRANCHES = 8  # answers about one picture in a row; attention grows with its square


@dataclass(frozen=True)
class Draft:
    """An answer before its masks are decoded.

    `embeddings` (T, L, D) belong to `decoded.phrases`; `features` are the maps (D, h_l, w_l) of the answer's picture.
    """

    decoded: DecodedAnswer
    embeddings: torch.Tensor
    features: tuple[torch.Tensor, ...]
    canvas: Canvas


@torch.no_grad()
def generate_drafts(
    model: PopenForReasoningSegmentation,
    processor: PopenProcessor,
    images: list[Image.Image],
    questions: list[str],
    max_new_tokens: int = 96,
    batch_size: int = 32,
    seeds: list[int] | None = None,
    temperature: float = 1.0,
    gallery: Gallery | None = None,
    **generation,
) -> list[Draft]:
    """Free generation: answers in the model's own words, greedy, or sampled where every question has a seed.

    Args:
        seeds: one per question; an answer does not depend on what its question is batched with.
        temperature: of sampled answers, above 0. generation: further settings of transformers' `generate`.
        gallery: where pictures that other passes read too are kept; without, each batch encodes its own.
    """
    _check_lengths(images, questions)
    ids = [processor.question_ids(q, f"question {i}") for i, q in enumerate(questions)]
    drafts: list[Draft | None] = [None] * len(questions)
    # An answer may be as long as its own question leaves room for, whatever the neighbours ask.
    room = [min(max_new_tokens, processor.max_length - len(processor.prefix_ids) - len(i)) for i in ids]
    # questions of like length go together where that costs no picture a second look
    order = sorted(range(len(questions)), key=lambda i: (-room[i], len(ids[i]) if gallery else 0))
    for window in _windows(order, room, batch_size):
        shown = (gallery or Gallery(model, processor)).show([images[i] for i in window], window)
        pictures, row_picture = shown.pictures, shown.rows
        own = generation
        if seeds is not None:
            sampler = SeededSampling([seeds[i] for i in window], temperature)
            own = generation | {"logits_processor": LogitsProcessorList([sampler])}
        batch = [list(ids[i]) for i in window]
        generated, states = generate(model, processor, batch, pictures, row_picture, room[window[0]], **own)
        for row, picture in enumerate(row_picture):
            decoded = processor.decode_answer(generated[row].tolist())
            at = torch.tensor(decoded.groups, dtype=torch.long).reshape(-1, len(processor.seg_token_ids))
            embeddings = model.codebook(states[row][at.to(states.device)])
            features = tuple(level[picture] for level in pictures.features)
            drafts[window[row]] = Draft(decoded, embeddings, features, shown.canvases[picture])
    return drafts


@torch.no_grad()
def continue_answers(
    model: PopenForReasoningSegmentation,
    processor: PopenProcessor,
    images: list[Image.Image],
    questions: list[str],
    starts: list[tuple[int, ...]],
    max_new_tokens: int = 96,
    batch_size: int = 32,
) -> list[DecodedAnswer | None]:
    """Answers that begin with the given tokens and go on greedily; None where one does not come to an end in time."""
    _check_lengths(images, questions)
    eos = processor.tokenizer.eos_token_id
    prompts = [
        [*processor.question_ids(q, f"question {i}"), *s]
        for i, (q, s) in enumerate(zip(questions, starts, strict=True))
    ]
    longest = processor.max_length - len(processor.prefix_ids)
    answers: list[DecodedAnswer | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    order = [i for i in order if len(prompts[i]) < longest]
    for window in (order[at : at + batch_size] for at in range(0, len(order), batch_size)):
        shown = Gallery(model, processor).show([images[i] for i in window], window)
        room = min(max_new_tokens, longest - len(prompts[window[0]]))
        generated, _ = generate(model, processor, [prompts[i] for i in window], shown.pictures, shown.rows, room)
        for index, ids in zip(window, generated.tolist(), strict=True):
            whole = [*starts[index], *ids]
            if eos in whole:
                answers[index] = processor.decode_answer(whole)
    return answers


@torch.no_grad()
def forced_drafts(
    model: PopenForReasoningSegmentation,
    processor: PopenProcessor,
    images: list[Image.Image],
    questions: list[str],
    answers: list[str],
    batch_size: int = 32,
    gallery: Gallery | None = None,
) -> list[Draft]:
    """Teacher forcing: answers are given, only the masks are the model's; questions about one picture share it."""
    drafts: list[Draft | None] = [None] * len(questions)
    for batch in read_answers(model, processor, images, questions, answers, batch_size, gallery):
        for index, draft in zip(batch.order, draft_answers(model, processor, batch, answers), strict=True):
            drafts[index] = draft
    return drafts


@dataclass(frozen=True)
class ReadAnswers:
    """Given answers as the model reads them: sequence n of `inputs` is answer `order[n]`, `hidden` is (B, S, H)."""

    order: list[int]
    inputs: dict[str, torch.Tensor]
    hidden: torch.Tensor
    pictures: EncodedPictures
    canvases: list[Canvas]


def read_answers(
    model, processor, images, questions, answers, batch_size: int, gallery: Gallery | None = None
) -> Iterator[ReadAnswers]:
    """Forward passes of at most `batch_size` rows; a row is a picture with at most MOST_BRANCHES of its answers."""
    _check_lengths(images, questions)
    order: dict[int, list[int]] = {}
    for index, image in enumerate(images):
        order.setdefault(id(image), []).append(index)
    groups = [own[at : at + MOST_BRANCHES] for own in order.values() for at in range(0, len(own), MOST_BRANCHES)]
    # rows of one batch are padded to the longest; letters stand for tokens
    groups.sort(key=lambda group: sum(len(questions[i]) + len(answers[i]) for i in group))
    for batch, rows in _passes(model, processor, questions, answers, groups, batch_size):
        firsts = [group[0] for group in batch]
        shown = (gallery or Gallery(model, processor)).show([images[i] for i in firsts], firsts)
        pictures = shown.pictures.of_rows(shown.rows)
        inputs = {k: v.to(model.device) for k, v in stack_rows(rows, processor.tokenizer.pad_token_id).items()}
        hidden, _ = model.read(
            inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"], pictures, spans=inputs["spans"]
        )
        flat = [index for group in batch for index in group]
        yield ReadAnswers(flat, inputs, hidden, pictures, [shown.canvases[i] for i in shown.rows])


def _passes(model, processor, questions, answers, groups: list[list[int]], most: int) -> Iterator[tuple[list, list]]:
    """Groups in their order, with their packed rows, as many at a time as one pass should hold."""
    batch, rows, longest = [], [], 0
    for group in groups:
        row = question_branches(processor, [(questions[i], answers[i]) for i in group], f"row {group[0]}")
        longest = max(longest, len(row.tree.input_ids))
        if len(batch) >= rows_per_pass(model, longest, most):
            yield batch, rows
            batch, rows, longest = [], [], len(row.tree.input_ids)
        batch.append(group)
        rows.append(row)
    if batch:
        yield batch, rows


def draft_answers(model, processor, batch: ReadAnswers, answers: list[str]) -> list[Draft]:
    """The drafts of one batch's answers, in its order."""
    inputs = batch.inputs
    embeddings = model.codebook(batch.hidden[inputs["target_row"][:, None], inputs["target_predictor"]])
    drafts = []
    for number, index in enumerate(batch.order):
        row = int(inputs["sequence_row"][number])
        decoded = processor.decode_answer(processor.answer_ids(answers[index]))
        features = tuple(level[row] for level in batch.pictures.features)
        drafts.append(Draft(decoded, embeddings[inputs["target_group"] == number], features, batch.canvases[row]))
    return drafts


@torch.no_grad()
def decode_drafts(model: PopenForReasoningSegmentation, drafts: list[Draft], batch_targets: int = 256) -> list[tuple]:
    """(mask logits (T, h, w), predicted IoU (T,)) of each draft, decoded together."""
    flat = [(d, t) for d, draft in enumerate(drafts) for t in range(len(draft.embeddings))]
    logits, quality = [], []
    for start in range(0, len(flat), batch_targets):
        part = flat[start : start + batch_targets]
        owners = sorted({d for d, _ in part})
        features = tuple(torch.stack(level) for level in zip(*(drafts[d].features for d in owners), strict=True))
        picture = torch.tensor([owners.index(d) for d, _ in part], device=model.device)
        embeddings = torch.stack([drafts[d].embeddings[t] for d, t in part])
        part_logits, part_quality = model.decode_masks(features, picture, embeddings)
        logits.append(part_logits)
        quality.append(part_quality)
    side = 2 * drafts[0].features[-1].shape[-1] if drafts else 0
    all_logits = torch.cat(logits) if logits else torch.zeros(0, side, side)
    all_quality = torch.cat(quality) if quality else torch.zeros(0)
    counts = [len(draft.embeddings) for draft in drafts]
    return list(zip(all_logits.split(counts), all_quality.split(counts), strict=True))


def restored_masks(model: PopenForReasoningSegmentation, drafts: list[Draft]) -> list[torch.Tensor]:
    """Mask logits of each draft at its picture's own size, (T, height, width)."""
    decoded = decode_drafts(model, drafts)
    return [draft.canvas.restore(logits) for draft, (logits, _) in zip(drafts, decoded, strict=True)]


def _check_lengths(images, questions) -> None:
    if len(images) != len(questions):
        raise ValueError(f"{len(images)} images and {len(questions)} questions; give one image per question")


def _windows(order: list[int], room: list[int], batch_size: int):
    """Runs of at most `batch_size` questions with equal room."""
    for _, run in itertools.groupby(order, key=lambda i: room[i]):
        run = list(run)
        yield from (run[start : start + batch_size] for start in range(0, len(run), batch_size))
