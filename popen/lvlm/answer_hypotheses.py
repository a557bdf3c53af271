"""Other answers the model had in mind, and what speaks for each of them."""

import torch
from PIL import Image
from torch.nn import functional as F

from popen.data.safe_io import DataError
from popen.lvlm.inference import Draft, continue_answers, decode_drafts, draft_answers, read_answers
from popen.lvlm.packing import pad_phrases
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
        logits = model.get_output_embeddings()(
            batch.hidden[batch.inputs["token_row"], batch.inputs["token_predictor"]]
        )
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


@torch.no_grad()
def answer_evidence(
    model, processor, images: list[Image.Image], questions: list[str], answers: list[list[str]], batch_size: int = 32
) -> tuple[list[list[Draft]], list[torch.Tensor]]:
    """Per question a draft of each of its answers and the evidence for them, (K, 4).

    Evidence: log p(answer | picture, question); summed over targets, log p(phrase | what is under its mask) and the
    predicted IoU; the number of targets. The second reads the mask back: the picture tokens under it go through the
    language model's output embedding, as the naming loss taught them to.
    """
    owner = [i for i, own in enumerate(answers) for _ in own]
    flat_images, flat_questions = [images[i] for i in owner], [questions[i] for i in owner]
    flat_answers = [answer for own in answers for answer in own]
    drafts: list[Draft | None] = [None] * len(owner)
    evidence = torch.zeros(len(owner), 4)
    for batch in read_answers(model, processor, flat_images, flat_questions, flat_answers, batch_size):
        inputs = batch.inputs
        logits = model.get_output_embeddings()(batch.hidden[inputs["token_row"], inputs["token_predictor"]])
        logps = logits.float().log_softmax(-1).gather(1, inputs["token_labels"][:, None])[:, 0]
        said = torch.zeros(len(batch.order), device=logps.device).index_add(0, inputs["token_sequence"], logps)
        made = draft_answers(model, processor, batch, flat_answers)
        decoded = decode_drafts(model, made)
        masks = torch.cat([own for own, _ in decoded]) - model.config.mask_threshold
        quality = torch.cat([own for _, own in decoded])
        phrases = pad_phrases([processor.phrase_ids(phrase) for d in made for phrase in d.decoded.phrases])
        cover = F.adaptive_avg_pool2d(masks.float().sigmoid()[:, None], int(len(batch.pictures.language[0]) ** 0.5))
        read_back = model.read_back(
            batch.pictures, inputs["target_row"], cover.flatten(1), phrases.to(inputs["target_row"].device)
        )
        per_target = torch.stack([read_back, quality.float(), torch.ones_like(read_back)], 1)
        summed = per_target.new_zeros(len(made), 3).index_add(0, inputs["target_group"], per_target)
        for number, index in enumerate(batch.order):
            drafts[index] = made[number]
        evidence[batch.order] = torch.cat([said[:, None], summed], 1).cpu()
    counts = [len(own) for own in answers]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return [drafts[s : s + c] for s, c in zip(starts, counts, strict=True)], list(evidence.split(counts))


def preferred_drafts(
    model, processor, images: list[Image.Image], questions: list[str], drafts: list[Draft], count: int, **settings
) -> list[Draft]:
    """Of each draft and up to `count` other answers the one with the highest preference score.

    Raises:
        DataError: the model's weights of the evidence were never fitted.
    """
    if model.config.answer_weights is None:
        raise DataError("config.json: answer_weights is not set; run recipes/calibrate.py --ensemble K on the model")
    answers = answer_hypotheses(model, processor, images, questions, drafts, count, **settings)
    doubtful = [i for i, own in enumerate(answers) if len(own) > 1]
    found, evidence = answer_evidence(
        model, processor, *([column[i] for i in doubtful] for column in (images, questions, answers))
    )
    weights = torch.tensor(model.config.answer_weights)
    chosen = list(drafts)
    for index, own, speaks in zip(doubtful, found, evidence, strict=True):
        best = preferred_answer(speaks, weights)
        chosen[index] = own[best] if best else drafts[index]
    return chosen
