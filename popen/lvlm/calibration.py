"""Numbers a model needs beside its weights, found on held-out data: mask threshold and embedding spread."""

import math

import torch

from popen.data.sample import Sample
from popen.lvlm.answer_hypotheses import answer_hypotheses, scored_answers
from popen.lvlm.hypotheses import attended_drafts, embedding_hypotheses, hypothesis_scores
from popen.lvlm.inference import Draft, forced_drafts, generate_drafts, restored_masks
from popen.lvlm.shifted_views import view_mean_logits
from popen.objectives.masks import intersection_union
from popen.preference.answers import best_margin
from popen.preference.judging import iou_with_truth

THRESHOLDS = torch.arange(-8, 9) / 4  # logits
SHARPNESSES = (0.25, 0.5, 1.0, 2.0, 4.0)
MARGINS = (0.0, 0.25, 0.5, 1.0, 2.0, math.inf)  # nats


def truth_drafts(model, processor, samples: list[Sample], batch_size: int = 32) -> list[Draft]:
    """Drafts of the true answers, one per question, in order."""
    asked = [(s.image, q.question, q.answer) for s in samples for q in s.questions]
    images, questions, answers = ([row[i] for row in asked] for i in range(3))
    return forced_drafts(model, processor, images, questions, answers, batch_size)


def embedding_spread(drafts: list[Draft]) -> list[float]:
    """Standard deviation of segmentation embeddings per scale, (L,), averaged over channels.

    Raises:
        ValueError: fewer than 2 targets.
    """
    embeddings = torch.cat([draft.embeddings for draft in drafts])
    if len(embeddings) < 2:
        raise ValueError(f"{len(embeddings)} targets: the embedding spread needs at least 2")
    return embeddings.float().std(0).mean(-1).tolist()


def threshold_counts(
    samples: list[Sample], logits: list[torch.Tensor], thresholds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersections and unions (thresholds, targets), int64, at the pictures' own size.

    Args:
        logits: per question, in order, (T, height, width) of its true targets.
    """
    questions = [(sample, q) for sample in samples for q in sample.questions]
    intersections, unions = [], []
    for (sample, question), own in zip(questions, logits, strict=True):
        if len(own) == 0:
            continue
        valid = torch.from_numpy(~sample.decoded_ignore()).to(own.device)
        truth = torch.from_numpy(question.decoded_masks(*valid.shape)).to(own.device)
        counts = [intersection_union(own > t, truth, valid.expand_as(truth)) for t in thresholds.tolist()]
        intersections.append(torch.stack([i for i, _ in counts]).cpu())
        unions.append(torch.stack([u for _, u in counts]).cpu())
    if not unions:
        return (torch.zeros(len(thresholds), 0, dtype=torch.long),) * 2
    return torch.cat(intersections, 1), torch.cat(unions, 1)


def best_threshold(samples: list[Sample], logits: list[torch.Tensor]) -> tuple[float, float]:
    """The logit threshold with the best cIoU among THRESHOLDS, and that cIoU; arguments as `threshold_counts`."""
    intersection, union = threshold_counts(samples, logits, THRESHOLDS)
    ciou = intersection.sum(1) / union.sum(1).clamp(min=1)
    best = int(ciou.argmax())
    return float(THRESHOLDS[best]), float(ciou[best])


def best_answer_margin(model, processor, samples: list[Sample], count: int, views: int, batch_size: int = 32) -> float:
    """The margin among MARGINS with the best mean IoU of the answers it prefers, single-pass masks.

    Args:
        count: other answers per question beside the model's own. views: shifted views of the picture.
    """
    asked = [(sample, q) for sample in samples for q in sample.questions]
    images, questions = [s.image for s, _ in asked], [q.question for _, q in asked]
    drafts = generate_drafts(model, processor, images, questions, batch_size=batch_size)
    answers = answer_hypotheses(model, processor, images, questions, drafts, count, batch_size=batch_size)
    doubtful = [i for i, own in enumerate(answers) if len(own) > 1]
    images, questions, answers = ([column[i] for i in doubtful] for column in (images, questions, answers))
    scores = scored_answers(model, processor, images, questions, answers, views, batch_size)
    return best_margin(scores, _answer_qualities(model, processor, [asked[i] for i in doubtful], answers), MARGINS)


def _answer_qualities(model, processor, asked: list[tuple], answers: list[list[str]]) -> list[torch.Tensor]:
    """Per question the IoU of each answer's masks together with the truth's together, (K,)."""
    flat = [(sample, q, answer) for (sample, q), own in zip(asked, answers, strict=True) for answer in own]
    drafts = forced_drafts(
        model, processor, [s.image for s, _, _ in flat], [q.question for _, q, _ in flat], [a for _, _, a in flat]
    )
    found = []
    for (sample, question, _), logits in zip(flat, restored_masks(model, drafts), strict=True):
        valid = torch.from_numpy(~sample.decoded_ignore())
        truth = torch.from_numpy(question.decoded_masks(*valid.shape)).any(0)
        mask = (logits > model.config.mask_threshold).any(0).cpu()
        found.append(iou_with_truth(mask[None], truth, valid))
    return list(torch.cat(found).split([len(own) for own in answers])) if found else []


def best_ensemble(
    model, processor, samples: list[Sample], drafts: list[Draft], count: int, views: int
) -> tuple[float, float, float]:
    """The λ of the attention among SHARPNESSES with the best cIoU, then the best threshold over views, and its cIoU.

    Args:
        drafts: of the true answers. count: K hypotheses beside the clean one. views: shifted views of the picture.
    """
    hypotheses = [embedding_hypotheses(model, draft, count, model.config.ensemble_noise, seed=0) for draft in drafts]
    scores = hypothesis_scores(model, drafts, hypotheses)
    found = []
    for sharpness in SHARPNESSES:
        attended = attended_drafts(drafts, hypotheses, scores, sharpness)
        _, ciou = best_threshold(samples, restored_masks(model, attended))
        found.append((ciou, -sharpness))
    sharpness = -max(found)[1]
    images = [sample.image for sample in samples for _ in sample.questions]
    attended = attended_drafts(drafts, hypotheses, scores, sharpness)
    return sharpness, *best_threshold(samples, view_mean_logits(model, processor, images, attended, views))
