"""How likely given answers are, of a picture and of shifted views of it."""

import torch
from PIL import Image

from popen.lvlm.inference import ReadAnswers, read_answers
from popen.lvlm.shifted_views import WORDS, shifted_views


@torch.no_grad()
def view_logps(
    model,
    processor,
    images: list[Image.Image],
    questions: list[str],
    answers: list[list[str]],
    views: int,
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """Per question log p of its answers under the picture and under shifted views of it, (K, 1 + views)."""
    owner = [i for i, own in enumerate(answers) for _ in own]
    flat_questions, flat_answers = [questions[i] for i in owner], [answer for own in answers for answer in own]
    seen = {id(image): [image, *shifted_views(processor, image, views, WORDS)] for image in images}
    logps = torch.zeros(len(owner), 1 + views)
    for k in range(1 + views):
        view = [seen[id(images[i])][k] for i in owner]
        for batch in read_answers(model, processor, view, flat_questions, flat_answers, batch_size):
            logps[batch.order, k] = answer_logps(model, batch).cpu()
    return list(logps.split([len(own) for own in answers]))


def answer_logps(model, batch: ReadAnswers) -> torch.Tensor:
    """log p of each answer of a batch of `read_answers`, (n,)."""
    states = batch.hidden[batch.inputs["token_row"], batch.inputs["token_predictor"]]
    logps = model.label_logps(states, batch.inputs["token_labels"]).float()
    return torch.zeros(len(batch.order), device=logps.device).index_add(0, batch.inputs["token_sequence"], logps)


def answer_logits(model, batch: ReadAnswers, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids (n,) of one answer of a batch, and what predicts each, (n, V)."""
    own = batch.inputs["token_sequence"] == number
    states = batch.hidden[batch.inputs["token_row"][own], batch.inputs["token_predictor"][own]]
    return batch.inputs["token_labels"][own], model.get_output_embeddings()(states)
