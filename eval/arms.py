"""The arms of an evaluation: one set of answers, and the masks that each way of reading them gives."""

from dataclasses import dataclass

import torch

from popen.data.schema import Sample
from popen.lvlm.calibration import THRESHOLDS, threshold_counts, truth_drafts
from popen.lvlm.flip import flip_logits
from popen.lvlm.hypotheses import (
    attended_drafts,
    embedding_hypotheses,
    hypothesis_scores,
    rectangle_hypotheses,
    uniform_drafts,
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


@torch.no_grad()
def arm_logits(model, processor, samples: list[Sample], drafts: list[Draft], arms: Arms) -> dict[str, list]:
    """Mask logits at the pictures' own size, per arm and question (T, height, width)."""
    asked = [(sample, question) for sample in samples for question in sample.questions]
    images, questions = [sample.image for sample, _ in asked], [question.question for _, question in asked]
    logits = {"single": restored_masks(model, drafts)}
    config = model.config
    if arms.ensemble:
        noisy = [embedding_hypotheses(model, d, arms.ensemble, config.ensemble_noise, arms.seed) for d in drafts]
        attended = _attended(model, drafts, noisy)
        logits["ensemble"] = view_mean_logits(model, processor, images, attended, config.ensemble_views)
        if arms.controls:
            logits["uniform"] = restored_masks(model, uniform_drafts(drafts, noisy))
            seeds = [[item_seed(arms.seed, s.image_id, k) for k in range(arms.ensemble)] for s, _ in asked]
            rectangles = [[noise_rectangle(k, *RECTANGLE) for k in own] for own in seeds]
            views = rectangle_hypotheses(model, processor, images, questions, drafts, rectangles)
            logits["rectangle_ensemble"] = restored_masks(model, _attended(model, drafts, views))
            if config.ensemble_views:
                logits["views"] = view_mean_logits(model, processor, images, drafts, config.ensemble_views)
    if arms.controls:
        logits["flip"] = flip_logits(model, processor, images, questions, drafts)
    return logits


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
        for arm, logits in arm_logits(model, processor, samples, drafts, arms).items():
            counts = torch.stack([c.sum(1) for c in threshold_counts(samples, logits, THRESHOLDS)])
            totals[arm] = totals.get(arm, 0) + counts
    return {arm: float(THRESHOLDS[(i / u.clamp(min=1)).argmax()]) for arm, (i, u) in totals.items()}


def configured_thresholds(model, arms: Arms) -> dict[str, float]:
    """The thresholds that the model's configuration holds; controls take the single pass's."""
    config = model.config
    names = ["single", *(["ensemble"] if arms.ensemble else [])]
    if arms.controls:
        hypotheses = ["uniform", "rectangle_ensemble", *(["views"] if config.ensemble_views else [])]
        names += [*(hypotheses if arms.ensemble else []), "flip"]
    return {n: config.ensemble_threshold if n == "ensemble" else config.mask_threshold for n in names}
