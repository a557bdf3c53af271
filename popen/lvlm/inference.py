"""From pictures and questions to answers: one batched, KV-cached generation, then light mask decodes."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from transformers.utils import ModelOutput

from popen.data.safe_io import DataError
from popen.lvlm.canvas import Canvas
from popen.lvlm.modeling_popen import EncodedPictures, PopenForReasoningSegmentation
from popen.lvlm.packing import question_branches, stack_rows
from popen.lvlm.processing_popen import DecodedAnswer, PopenProcessor
from popen.preference.ensemble import attended_embedding, noisy_embeddings, preference_attention


@dataclass(frozen=True)
class Target:
    """One segmented thing: its phrase, its mask at the picture's own size (H, W) bool, and a confidence 0..1."""

    phrase: str
    mask: np.ndarray
    confidence: float


@dataclass(frozen=True)
class Answer:
    """An answer in words, its targets in order, and how many broken `[SEG…]` groups were dropped from it."""

    text: str
    targets: tuple[Target, ...]
    incomplete: int = 0


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
    **sampling,
) -> list[Draft]:
    """Free generation: answers in the model's own words, greedy unless `sampling` says otherwise."""
    _check_lengths(images, questions)
    ids = [processor.question_ids(q, f"question {i}") for i, q in enumerate(questions)]
    drafts: list[Draft | None] = [None] * len(questions)
    # An answer may be as long as its own question leaves room for, whatever the neighbours ask.
    room = [min(max_new_tokens, processor.max_length - len(processor.prefix_ids) - len(i)) for i in ids]
    order = sorted(range(len(questions)), key=lambda i: -room[i])
    for window in _windows(order, room, batch_size):
        pictures, canvases, row_picture = _encode_unique(model, processor, [images[i] for i in window], window)
        batch = [processor.prefix_ids + ids[i] for i in window]
        generated, states = _generate(model, processor, batch, pictures, row_picture, room[window[0]], sampling)
        for row, picture in enumerate(row_picture):
            decoded = processor.decode_answer(generated[row].tolist())
            at = torch.tensor(decoded.groups, dtype=torch.long).reshape(-1, len(processor.seg_token_ids))
            embeddings = model.codebook(states[row][at.to(states.device)])
            features = tuple(level[picture] for level in pictures.features)
            drafts[window[row]] = Draft(decoded, embeddings, features, canvases[picture])
    return drafts


@torch.no_grad()
def forced_drafts(
    model: PopenForReasoningSegmentation,
    processor: PopenProcessor,
    images: list[Image.Image],
    questions: list[str],
    answers: list[str],
    batch_size: int = 32,
) -> list[Draft]:
    """Teacher forcing: answers are given, only the masks are the model's; questions about one picture share it."""
    _check_lengths(images, questions)
    drafts: list[Draft | None] = [None] * len(questions)
    order: dict[int, list[int]] = {}
    for index, image in enumerate(images):
        order.setdefault(id(image), []).append(index)
    groups = list(order.values())
    for start in range(0, len(groups), batch_size):
        batch = groups[start : start + batch_size]
        pictures, canvases, _ = _encode_unique(model, processor, [images[g[0]] for g in batch], [g[0] for g in batch])
        rows = [question_branches(processor, [(questions[i], answers[i]) for i in g], f"row {g[0]}") for g in batch]
        inputs = {k: v.to(model.device) for k, v in stack_rows(rows, processor.tokenizer.pad_token_id).items()}
        hidden = model.read(inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"], pictures)
        embeddings = model.codebook(hidden[inputs["target_row"][:, None], inputs["target_predictor"]])
        flat = [index for group in batch for index in group]
        for number, index in enumerate(flat):
            row = int(inputs["sequence_row"][number])
            decoded = processor.decode_answer(processor.answer_ids(answers[index]))
            features = tuple(level[row] for level in pictures.features)
            own = inputs["target_group"] == number
            drafts[index] = Draft(decoded, embeddings[own], features, canvases[row])
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


@torch.no_grad()
def ensemble_drafts(
    model: PopenForReasoningSegmentation,
    drafts: list[Draft],
    count: int,
    noise: float,
    sharpness: float,
    seed: int,
    batch_targets: int = 64,
) -> list[Draft]:
    """Replaces each target's embedding by the preference-attended one of K noisy hypotheses and the clean one.

    Every draft draws its noise from the same seed, so an answer does not depend on its neighbours in the batch.

    Args:
        count: K >= 1. noise: in units of the training spread of embeddings. sharpness: λ of the attention.
    """
    hypotheses = [embedding_hypotheses(model, draft, count, noise, seed) for draft in drafts]
    flat = [(d, t) for d, own in enumerate(hypotheses) for t in range(len(own))]
    attended = []
    for start in range(0, len(flat), batch_targets):
        part = flat[start : start + batch_targets]
        stacked = torch.stack([hypotheses[d][t] for d, t in part])
        features = tuple(torch.stack(level) for level in zip(*(drafts[d].features for d, _ in part), strict=True))
        weights = preference_attention(stacked, score_hypotheses(model, stacked, features), sharpness)
        attended.append(attended_embedding(stacked, weights))
    parts = torch.cat(attended).split([len(own) for own in hypotheses]) if flat else [d.embeddings for d in drafts]
    return [replace(draft, embeddings=own) for draft, own in zip(drafts, parts, strict=True)]


def embedding_hypotheses(model, draft: Draft, count: int, noise: float, seed: int) -> torch.Tensor:
    """The clean embedding and K noisy copies of each target, (T, K+1, L, D); no further LVLM pass.

    Raises:
        DataError: the model was never calibrated, so the spread of its embeddings is unknown.
    """
    if model.config.embedding_std is None:
        raise DataError("config.json: embedding_std is not set; run recipes/calibrate.py on the model first")
    std = torch.tensor(model.config.embedding_std, device=model.device) * noise
    generator = torch.Generator().manual_seed(seed)
    noisy = noisy_embeddings(draft.embeddings, std, count, generator)
    return torch.cat([draft.embeddings[:, None], noisy], 1)


@torch.no_grad()
def decode_hypotheses(model, hypotheses_TKLD: torch.Tensor, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mask logits (T, K, h, w) of hypotheses; `features` are L maps (T, D, h_l, w_l), one per target."""
    targets, count = hypotheses_TKLD.shape[:2]
    picture = torch.arange(targets, device=hypotheses_TKLD.device).repeat_interleave(count)
    logits, _ = model.decode_masks(features, picture, hypotheses_TKLD.flatten(0, 1))
    return logits.unflatten(0, (targets, count))


@torch.no_grad()
def score_hypotheses(model, hypotheses_TKLD: torch.Tensor, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Preference scores (T, K): K light decodes per target, no LVLM pass."""
    logits = decode_hypotheses(model, hypotheses_TKLD, features) - model.config.mask_threshold
    return model.preference_head(model.preference_head.evidence(hypotheses_TKLD, logits, features[-1]))


def finish(model: PopenForReasoningSegmentation, drafts: list[Draft]) -> list[Answer]:
    """Decodes the masks of drafts and brings them to the pictures' own size."""
    answers = []
    for draft, (logits, quality) in zip(drafts, decode_drafts(model, drafts), strict=True):
        masks = (draft.canvas.restore(logits) > model.config.mask_threshold).cpu().numpy() if len(logits) else []
        targets = tuple(Target(*t) for t in zip(draft.decoded.phrases, masks, quality.tolist(), strict=True))
        answers.append(Answer(draft.decoded.text, targets, draft.decoded.incomplete))
    return answers


def segment(model, processor, images, questions, ensemble, max_new_tokens, batch_size) -> list[Answer]:
    """See `PopenForReasoningSegmentation.segment`."""
    if ensemble < 0:
        raise ValueError(f"ensemble = {ensemble}: give K >= 1 hypotheses, or 0 for a single pass")
    drafts = generate_drafts(model, processor, images, questions, max_new_tokens, batch_size)
    if ensemble:
        config = model.config
        drafts = ensemble_drafts(model, drafts, ensemble, config.ensemble_noise, config.ensemble_sharpness, seed=0)
    return finish(model, drafts)


def _check_lengths(images, questions) -> None:
    if len(images) != len(questions):
        raise ValueError(f"{len(images)} images and {len(questions)} questions; give one image per question")


def _windows(order: list[int], room: list[int], batch_size: int):
    """Runs of at most `batch_size` questions with equal room."""
    for _, run in itertools.groupby(order, key=lambda i: room[i]):
        run = list(run)
        yield from (run[start : start + batch_size] for start in range(0, len(run), batch_size))


def _encode_unique(model, processor, images, numbers: list[int]) -> tuple[EncodedPictures, list[Canvas], list[int]]:
    """Encodes each distinct picture object once; returns it with its canvas and, per row, the picture's index."""
    index: dict[int, int] = {}
    squares, canvases, rows = [], [], []
    for number, image in zip(numbers, images, strict=True):
        if id(image) not in index:
            index[id(image)] = len(squares)
            square, canvas = processor.place(image, f"image {number}")
            squares.append(square)
            canvases.append(canvas)
        rows.append(index[id(image)])
    return model.encode_pictures(processor.pixel_values(squares).to(model.device, model.dtype)), canvases, rows


def _generate(model, processor, batch, pictures, row_picture, max_new_tokens, sampling):
    """Left-padded generation; returns new ids (B, n) and the states that predicted them (B, n, H)."""
    width = max(map(len, batch))
    pad = processor.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=model.device)
    states: list[torch.Tensor] = []
    # The head's input at each step is the state that predicts the next token: all that the codebook needs.
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: states.append(inputs[0][:, -1]))
    try:
        output = model.backbone.generate(
            input_ids=ids,
            attention_mask=mask,
            mm_encoder_outputs={"image": ModelOutput(pooler_output=[pictures.language[i] for i in row_picture])},
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=processor.tokenizer.eos_token_id,
            **({"do_sample": False} | sampling),
        )
    finally:
        hook.remove()
    return output[:, width:], torch.stack(states, 1)
