"""The arms of an evaluation: one set of answers, and the masks that each way of reading them gives."""

from dataclasses import dataclass

import torch

from popen.data.schema import Sample
from popen.lvlm.answer_hypotheses import preferred_drafts
from popen.lvlm.calibration import THRESHOLDS, threshold_counts, truth_drafts
from popen.lvlm.flip import flip_logits
from popen.lvlm.hypotheses import (
    attended_drafts,
    embedding_hypotheses,
    hypothesis_scores,
    uniform_drafts,
    view_hypotheses,
)
from popen.lvlm.inference import Draft, restored_masks
from popen.lvlm.shifted_views import view_mean_logits
from popen.preference.sampling import item_seed, noise_rectangle

RECTANGLE = (0.08, 0.15, 0.5)  # least and largest share of the picture, and σ: as in mining


@dataclass(frozen=True)
class Arms:
    """Which arms to read: the ensemble of K hypotheses where ensemble > 0, and its controls where asked for."""

    ensemble: int = 0
    controls: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Reading:
    """What one arm makes of the questions: drafts, and mask logits (T, height, width) at the pictures' own size."""

    drafts: list[Draft]
    logits: list[torch.Tensor]


@torch.no_grad()
def read_arms(
    model, processor, samples: list[Sample], drafts: list[Draft], arms: Arms, choose: bool
) -> dict[str, Reading]:
    """Every arm's reading of the same questions.

    Args:
        drafts: the single pass. choose: whether the ensemble may give other answers than the single pass; its control
            `ensemble_masks` never does.
    """
    asked = [(sample, question) for sample in samples for question in sample.questions]
    images, questions = [sample.image for sample, _ in asked], [question.question for _, question in asked]
    found = {"single": Reading(drafts, restored_masks(model, drafts))}
    config = model.config
    if arms.ensemble:
        chosen = drafts
        if choose and config.answer_margin is not None:
            chosen = preferred_drafts(model, processor, images, questions, drafts, arms.ensemble)
        found["ensemble"] = _preference_ensemble(model, processor, images, chosen, arms)
        if arms.controls:
            kept = (
                found["ensemble"] if chosen is drafts else _preference_ensemble(model, processor, images, drafts, arms)
            )
            found["ensemble_masks"] = kept
            noisy = _noisy(model, drafts, arms)
            found["uniform"] = Reading(drafts, restored_masks(model, uniform_drafts(drafts, noisy)))
            seeds = [[item_seed(arms.seed, s.image_id, k) for k in range(arms.ensemble)] for s, _ in asked]
            rectangles = [[noise_rectangle(k, *RECTANGLE) for k in own] for own in seeds]
            views = view_hypotheses(model, processor, images, questions, drafts, rectangles)
            attended = _attended(model, drafts, views)
            found["rectangle_ensemble"] = Reading(drafts, restored_masks(model, attended))
            if config.ensemble_views:
                mean = view_mean_logits(model, processor, images, drafts, config.ensemble_views)
                found["views"] = Reading(drafts, mean)
    if arms.controls:
        found["flip"] = Reading(drafts, flip_logits(model, processor, images, questions, drafts))
    return found


def _preference_ensemble(model, processor, images, drafts: list[Draft], arms: Arms) -> Reading:
    attended = _attended(model, drafts, _noisy(model, drafts, arms))
    return Reading(drafts, view_mean_logits(model, processor, images, attended, model.config.ensemble_views))


def _noisy(model, drafts: list[Draft], arms: Arms) -> list[torch.Tensor]:
    return [embedding_hypotheses(model, d, arms.ensemble, model.config.ensemble_noise, arms.seed) for d in drafts]


def _attended(model, drafts, hypotheses) -> list[Draft]:
    scores = hypothesis_scores(model, drafts, hypotheses)
    return attended_drafts(drafts, hypotheses, scores, model.config.ensemble_sharpness)


def calibrated_thresholds(model, processor, parts, arms: Arms) -> dict[str, float]:
    """The threshold of each arm with the best cIoU on pictures that are not scored, true answers teacher-forced.

    Args:
        parts: lists of samples; one is in memory at a time.
    """
    totals: dict[str, torch.Tensor] = {}
    for samples in parts:
        drafts = truth_drafts(model, processor, samples)
        for arm, reading in read_arms(model, processor, samples, drafts, arms, choose=False).items():
            counts = torch.stack([c.sum(1) for c in threshold_counts(samples, reading.logits, THRESHOLDS)])
            totals[arm] = totals.get(arm, 0) + counts
    return {arm: float(THRESHOLDS[(i / u.clamp(min=1)).argmax()]) for arm, (i, u) in totals.items()}


def configured_thresholds(model, arms: Arms) -> dict[str, float]:
    """The thresholds that the model's configuration holds; controls take the single pass's."""
    config = model.config
    names = ["single", *(["ensemble"] if arms.ensemble else [])]
    if arms.controls:
        hypotheses = ["uniform", "rectangle_ensemble", *(["views"] if config.ensemble_views else [])]
        names += [*(["ensemble_masks", *hypotheses] if arms.ensemble else []), "flip"]
    return {n: config.ensemble_threshold if n.startswith("ensemble") else config.mask_threshold for n in names}
