"""Other answers the model had in mind, and the one it prefers when the picture is looked at again."""

import torch
from PIL import Image

from popen.lvlm.answer_likelihood import answer_logits, view_logps
from popen.lvlm.erased_views import denials, nothing_left
from popen.lvlm.inference import Draft, continue_answers, forced_drafts, read_answers
from popen.preference.answers import answer_scores, preferred_answer
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
        for number, index in enumerate(batch.order):
            ids, logits = answer_logits(model, batch, number)
            points[index] = [(tuple(ids.tolist()), p) for p in branch_points(logits, ids, count, least)]
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


def scored_answers(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    answers: list[list[str]],
    views: int,
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """Per question `popen.preference.answers.answer_scores` of its answers, (K,); −∞ where one can no longer win.

    A second question only lowers a score, so it is put to the own answer, to the likeliest other one and then to those
    that are likelier over views than that one's score: whatever the own answer's head start, the best is among them.
    """
    logps = view_logps(model, processor, images, questions, answers, views, batch_size)
    means = [own.double().mean(1) for own in logps]
    scores = [torch.full_like(own, -torch.inf) for own in means]
    spoken = denials(model, processor, images, questions, batch_size=batch_size)

    def ask(chosen: list[list[int]]) -> None:
        asked = [[answers[i][k] for k in own] for i, own in enumerate(chosen)]
        left = nothing_left(model, processor, images, questions, asked, spoken, batch_size)
        for i, own in enumerate(chosen):
            if own:
                scores[i][own] = answer_scores(logps[i][own], left[i])

    first = [[0, 1 + int(own[1:].argmax())] if len(own) > 1 else [0] for own in means]
    ask(first)
    ask(
        [
            [k for k in range(1, len(own)) if k not in asked and own[k] > scores[i][asked[-1]]]
            for i, (own, asked) in enumerate(zip(means, first, strict=True))
        ]
    )
    return scores


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
    """Of each draft and up to `count` other answers the preferred one, by shifted views and by what is left to name.

    Where the model's configuration has no `answer_margin`, every draft stays as it is.
    """
    margin, views = model.config.answer_margin, model.config.ensemble_views
    if margin is None:
        return drafts
    answers = answer_hypotheses(model, processor, images, questions, drafts, count, batch_size=batch_size, **settings)
    doubtful = [i for i, own in enumerate(answers) if len(own) > 1]
    asked = [[column[i] for i in doubtful] for column in (images, questions, answers)]
    best = {
        index: preferred_answer(scores, margin)
        for index, scores in zip(doubtful, scored_answers(model, processor, *asked, views, batch_size), strict=True)
    }
    changed = [i for i, k in best.items() if k > 0]
    asked = [[images[i] for i in changed], [questions[i] for i in changed], [answers[i][best[i]] for i in changed]]
    other = dict(zip(changed, forced_drafts(model, processor, *asked), strict=True))
    return [other.get(i, draft) for i, draft in enumerate(drafts)]
