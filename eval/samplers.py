"""The samplers of the study: each maps drafts of true answers to candidates, the clean one first, (T, K+1, L, D)."""

from collections.abc import Callable
from functools import partial

import torch

from popen.data.schema import Sample
from popen.lvlm.calibration import truth_drafts
from popen.lvlm.hypotheses import embedding_hypotheses, view_hypotheses
from popen.lvlm.inference import Draft
from popen.lvlm.mc_dropout import residual_dropout
from popen.lvlm.shifted_views import view_offsets
from popen.preference.sampling import NoiseRectangles, Shift, View, item_seed, noise_rectangle

Sampler = Callable[..., list[torch.Tensor]]  # model, processor, samples, drafts, count, seed


def embedding_noise(model, processor, samples: list[Sample], drafts: list[Draft], count: int, seed: int, noise: float):
    """Gaussian noise on the segmentation embedding, in units of the training spread; no LVLM pass."""
    ids = [question.id for sample in samples for question in sample.questions]
    return [
        embedding_hypotheses(model, draft, count, noise, item_seed(seed, name))
        for name, draft in zip(ids, drafts, strict=True)
    ]


def rectangles(
    model, processor, samples, drafts, count: int, seed: int, areas: tuple[float, float], sigma: float, number: int = 1
):
    """`number` noise rectangles in each of K views."""

    def view(name: str, k: int) -> View:
        seeds = [item_seed(seed, name, k, n) for n in range(number)]
        return NoiseRectangles(tuple(noise_rectangle(own, *areas, sigma) for own in seeds))

    return _views(model, processor, samples, drafts, lambda s: [view(s.image_id, k) for k in range(count)])


def shifts(model, processor, samples, drafts, count: int, seed: int, share: float):
    """K views moved by a share of a picture token."""
    own = lambda sample: [Shift(*at) for at in view_offsets(processor, sample.image, count, share)]  # noqa: E731
    return _views(model, processor, samples, drafts, own)


def dropout(model, processor, samples, drafts: list[Draft], count: int, seed: int, rate: float):
    """K passes of the language model with dropout."""
    stacks = [[draft.embeddings] for draft in drafts]
    for k in range(count):
        with residual_dropout(model, rate, item_seed(seed, samples[0].image_id, k)):
            drawn = truth_drafts(model, processor, samples)
        for stack, draft in zip(stacks, drawn, strict=True):
            stack.append(draft.embeddings)
    return [torch.stack(stack, 1) for stack in stacks]


def mixture(model, processor, samples, drafts, count: int, seed: int, one: Sampler, other: Sampler):
    """Half of the candidates from each of two samplers."""
    first = one(model, processor, samples, drafts, count - count // 2, seed)
    second = other(model, processor, samples, drafts, count // 2, seed)
    return [torch.cat([a, b[:, 1:]], 1) for a, b in zip(first, second, strict=True)]


def _views(model, processor, samples: list[Sample], drafts, views_of: Callable[[Sample], list[View]]):
    asked = [(sample, question) for sample in samples for question in sample.questions]
    own = {sample.image_id: views_of(sample) for sample in samples}
    return view_hypotheses(
        model, processor, [s.image for s, _ in asked], [q.question for _, q in asked], drafts,
        [own[s.image_id] for s, _ in asked],
    )  # fmt: skip


PAPER = partial(rectangles, areas=(0.08, 0.15), sigma=0.5)
NOISE = partial(embedding_noise, noise=0.5)

SAMPLERS: dict[str, Sampler] = {
    "rectangle, 8–15 %, σ 0.2": partial(rectangles, areas=(0.08, 0.15), sigma=0.2),
    "rectangle, 8–15 %, σ 0.5": PAPER,
    "rectangle, 15–40 %, σ 0.2": partial(rectangles, areas=(0.15, 0.4), sigma=0.2),
    "rectangle, 15–40 %, σ 0.5": partial(rectangles, areas=(0.15, 0.4), sigma=0.5),
    "three rectangles, 8–15 %, σ 0.5": partial(PAPER, number=3),
    "embedding noise, 0.25": partial(embedding_noise, noise=0.25),
    "embedding noise, 0.5": NOISE,
    "embedding noise, 1": partial(embedding_noise, noise=1.0),
    "dropout in the language model, 0.05": partial(dropout, rate=0.05),
    "dropout in the language model, 0.2": partial(dropout, rate=0.2),
    "shift by an eighth of a token": partial(shifts, share=1 / 8),
    "shift by half a token": partial(shifts, share=1 / 2),
    "mixture: rectangle σ 0.5 and embedding noise 0.5": partial(mixture, one=PAPER, other=NOISE),
}
