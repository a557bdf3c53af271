"""Other answers the model had in mind, and how likely each of them stays when the picture is looked at again."""

import torch
from PIL import Image

from popen.lvlm.inference import Draft, ReadAnswers, continue_answers, forced_drafts, read_answers
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
    least: float = 0.05,
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


@torch.no_grad()
def view_logps(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    answers: list[list[str]],
    views: int,
    batch_size: int = 16,
) -> list[torch.Tensor]:
    """Per question log p of its answers under the picture and under shifted views of it, (K, 1 + views)."""
    owner = [i for i, own in enumerate(answers) for _ in own]
    flat_questions, flat_answers = [questions[i] for i in owner], [answer for own in answers for answer in own]
    seen = {id(image): [image, *shifted_views(processor, image, views, WORDS)] for image in images}
    logps = torch.zeros(len(owner), 1 + views)
    for k in range(1 + views):
        view = [seen[id(images[i])][k] for i in owner]
        for batch in read_answers(model, processor, view, flat_questions, flat_answers, batch_size):
            logps[batch.order, k] = _answer_logps(model, batch).cpu()
    return list(logps.split([len(own) for own in answers]))


def _answer_logps(model, batch: ReadAnswers) -> torch.Tensor:
    """log p of each answer of a batch, (n,)."""
    logps = per_token_logps(_answer_logits(model, batch), batch.inputs["token_labels"]).float()
    return torch.zeros(len(batch.order), device=logps.device).index_add(0, batch.inputs["token_sequence"], logps)


def _answer_logits(model, batch: ReadAnswers) -> torch.Tensor:
    """What predicts each token of a batch's answers, (N, V)."""
    return model.get_output_embeddings()(batch.hidden[batch.inputs["token_row"], batch.inputs["token_predictor"]])


def preferred_drafts(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    drafts: list[Draft],
    count: int,
    batch_size: int = 32,
    **settings,
) -> list[Draft]:
    """Of each draft and up to `count` other answers the one that is likeliest over shifted views of the picture.

    Where the model's configuration has no `answer_margin`, every draft stays as it is.
    """
    margin, views = model.config.answer_margin, model.config.ensemble_views
    if margin is None:
        return drafts
    answers = answer_hypotheses(model, processor, images, questions, drafts, count, batch_size=batch_size, **settings)
    doubtful = [i for i, own in enumerate(answers) if len(own) > 1]
    asked = [[column[i] for i in doubtful] for column in (images, questions, answers)]
    best = {
        index: preferred_answer(logps, margin)
        for index, logps in zip(doubtful, view_logps(model, processor, *asked, views), strict=True)
    }
    changed = [i for i, k in best.items() if k > 0]
    asked = [[images[i] for i in changed], [questions[i] for i in changed], [answers[i][best[i]] for i in changed]]
    other = dict(zip(changed, forced_drafts(model, processor, *asked), strict=True))
    return [other.get(i, draft) for i, draft in enumerate(drafts)]
