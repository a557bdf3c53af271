"""Other answers the model had in mind, and what speaks for each of them."""

import torch
from PIL import Image
from torch.nn import functional as F

from popen.data.safe_io import DataError
from popen.lvlm.inference import (
    Draft,
    ReadAnswers,
    continue_answers,
    decode_drafts,
    draft_answers,
    read_answers,
)
from popen.lvlm.packing import pad_phrases
from popen.lvlm.shifted_views import WORDS, shifted_views
from popen.objectives.scores import per_token_logps
from popen.preference.answers import preferred_answer
from popen.preference.sampling import BranchPoint, branch_points


@torch.no_grad()
def answer_hypotheses(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    drafts: list[Draft],
    count: int,
    least: float = 0.02,
    max_new_tokens: int = 96,
    batch_size: int = 32,
) -> list[list[str]]:
    """Per question the draft's own answer and up to `count` others, without repetitions.

    Most questions leave no doubt and get no others, so this costs a fraction of `count` generations.

    Args:
        least: probability below which a beginning is not worth finishing, 0..1.
    """
    answers = [draft.decoded.text for draft in drafts]
    points: list[list[tuple[tuple[int, ...], BranchPoint]]] = [[] for _ in answers]
    for batch in read_answers(model, processor, images, questions, answers, batch_size):
        logits = _answer_logits(model, batch)
        for number, index in enumerate(batch.order):
            own = batch.inputs["token_sequence"] == number
            ids = batch.inputs["token_labels"][own]
            points[index] = [(tuple(ids.tolist()), p) for p in branch_points(logits[own], ids, count, least)]
    starts = [(i, (*ids[: p.kept], p.token)) for i, own in enumerate(points) for ids, p in own]
    finished = continue_answers(
        model,
        processor,
        [images[i] for i, _ in starts],
        [questions[i] for i, _ in starts],
        [ids for _, ids in starts],
        max_new_tokens,
        batch_size,
    )
    found = [[answer] for answer in answers]
    for (index, _), decoded in zip(starts, finished, strict=True):
        if decoded is not None and decoded.incomplete == 0 and decoded.text not in found[index]:
            found[index].append(decoded.text)
    return found


def answer_logps(model, batch: ReadAnswers) -> torch.Tensor:
    """log p of each answer of a batch, (n,)."""
    logps = per_token_logps(_answer_logits(model, batch), batch.inputs["token_labels"]).float()
    return torch.zeros(len(batch.order), device=logps.device).index_add(0, batch.inputs["token_sequence"], logps)


def _answer_logits(model, batch: ReadAnswers) -> torch.Tensor:
    """What predicts each token of a batch's answers, (N, V)."""
    return model.get_output_embeddings()(batch.hidden[batch.inputs["token_row"], batch.inputs["token_predictor"]])


@torch.no_grad()
def answer_evidence(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    answers: list[list[str]],
    views: int,
    batch_size: int = 32,
) -> tuple[list[list[Draft]], list[torch.Tensor]]:
    """Per question a draft of each of its answers and the evidence for them, (K, 5).

    Evidence: log p(answer | picture, question), and its mean over shifted views of the picture; summed over targets,
    log p(phrase | what is under its mask) and the predicted IoU; the number of targets. The third reads the mask back:
    the picture tokens under it go through the language model's output embedding, as the naming loss taught them to.

    Args:
        views: how many shifted views are looked at, >= 0; the clean picture is one of those averaged.
    """
    owner = [i for i, own in enumerate(answers) for _ in own]
    flat_images, flat_questions = [images[i] for i in owner], [questions[i] for i in owner]
    flat_answers = [answer for own in answers for answer in own]
    drafts: list[Draft | None] = [None] * len(owner)
    evidence = torch.zeros(len(owner), 5)
    for batch in read_answers(model, processor, flat_images, flat_questions, flat_answers, batch_size):
        made = draft_answers(model, processor, batch, flat_answers)
        for number, index in enumerate(batch.order):
            drafts[index] = made[number]
        summed = _target_evidence(model, processor, batch, made)
        said = answer_logps(model, batch)
        evidence[batch.order] = torch.cat([said[:, None], said[:, None], summed], 1).cpu()
    moved = {id(image): shifted_views(processor, image, views, WORDS) for image in flat_images}
    for k in range(views):
        view = [moved[id(image)][k] for image in flat_images]
        for batch in read_answers(model, processor, view, flat_questions, flat_answers, batch_size):
            evidence[batch.order, 1] += answer_logps(model, batch).cpu()
    evidence[:, 1] /= 1 + views
    counts = [len(own) for own in answers]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [drafts[s : s + c] for s, c in zip(starts, counts, strict=True)], list(evidence.split(counts))


def _target_evidence(model, processor, batch: ReadAnswers, drafts: list[Draft]) -> torch.Tensor:
    """Summed over each answer's targets: read-back log-probability, predicted IoU, and 1; (n, 3)."""
    row, group = batch.inputs["target_row"], batch.inputs["target_group"]
    decoded = decode_drafts(model, drafts)
    masks = torch.cat([own for own, _ in decoded]) - model.config.mask_threshold
    quality = torch.cat([own for _, own in decoded]).float()
    phrases = pad_phrases([processor.phrase_ids(phrase) for d in drafts for phrase in d.decoded.phrases])
    cover = F.adaptive_avg_pool2d(masks.float().sigmoid()[:, None], int(processor.picture_tokens**0.5)).flatten(1)
    read_back = model.read_back(batch.pictures, row, cover, phrases.to(row.device))
    per_target = torch.stack([read_back, quality, torch.ones_like(quality)], 1)
    return per_target.new_zeros(len(drafts), 3).index_add(0, group, per_target)


def preferred_drafts(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    drafts: list[Draft],
    count: int,
    **settings,
) -> list[Draft]:
    """Of each draft and up to `count` other answers the one with the highest preference score.

    Raises:
        DataError: the model's weights of the evidence were never fitted.
    """
    if model.config.answer_weights is None:
        raise DataError("config.json: answer_weights is not set; run recipes/calibrate.py --ensemble K --answers true")
    answers = answer_hypotheses(model, processor, images, questions, drafts, count, **settings)
    doubtful = [i for i, own in enumerate(answers) if len(own) > 1]
    found, evidence = answer_evidence(
        model,
        processor,
        *([column[i] for i in doubtful] for column in (images, questions, answers)),
        views=model.config.ensemble_views,
    )
    weights = torch.tensor(model.config.answer_weights)
    chosen = list(drafts)
    for index, own, speaks in zip(doubtful, found, evidence, strict=True):
        best = preferred_answer(speaks, weights)
        chosen[index] = own[best] if best else drafts[index]
    return chosen
