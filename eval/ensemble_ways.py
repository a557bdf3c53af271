"""Hypotheses of masks, and every way to make one mask of them: the parts of the ensemble study."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from popen.data.schema import Sample
from popen.lvlm.calibration import SHARPNESSES, truth_drafts
from popen.lvlm.hypotheses import embedding_hypotheses
from popen.lvlm.inference import decode_drafts
from popen.lvlm.preference_head import PreferenceHead
from popen.preference.ensemble import agreement, attended_embedding, preference_attention

COUNTS = (2, 4, 8)
NAMES = ("head", "regression", "implicit_reward", "predicted_iou", "agreement", "confidence")


@dataclass(frozen=True)
class Hypotheses:
    """Some pictures' T targets: clean embedding and K noisy ones, their masks and scores, and the truth.

    `embeddings` (T, K+1, L, D), `logits` (T, K+1, h, w), `scores` (T, K+1) by name; `features` L maps (T, D, h, w);
    per target its picture's canvas, true mask (H, W) and valid pixels.
    """

    embeddings: torch.Tensor
    logits: torch.Tensor
    scores: dict[str, torch.Tensor]
    predicted_iou: torch.Tensor
    features: tuple[torch.Tensor, ...]
    canvases: list
    truth: list[torch.Tensor]
    valid: list[torch.Tensor]
    picture: list[str]


@torch.no_grad()
def hypotheses_of(model, base, regression: PreferenceHead, processor, samples: list[Sample]) -> Hypotheses:
    """K = max(COUNTS) hypotheses of every target of some pictures."""
    drafts, reference = truth_drafts(model, processor, samples), truth_drafts(base, processor, samples)
    stacked = [embedding_hypotheses(model, d, max(COUNTS), model.config.ensemble_noise, seed=0) for d in drafts]
    owner = [i for i, draft in enumerate(drafts) for _ in range(len(draft.embeddings))]
    embeddings = torch.cat(stacked)
    features = tuple(torch.stack(level) for level in zip(*(drafts[i].features for i in owner), strict=True))
    targets, count = embeddings.shape[:2]
    picture = torch.arange(targets).repeat_interleave(count)
    logits, quality = model.decode_masks(features, picture, embeddings.flatten(0, 1))
    logits, quality = logits.unflatten(0, (targets, count)), quality.unflatten(0, (targets, count))
    evidence = model.preference_head.evidence(embeddings, logits - model.config.mask_threshold, features[-1])
    hard = (logits > model.config.mask_threshold).float()
    gain = logits[:, 0] - torch.cat([own for own, _ in decode_drafts(base, reference)])
    scores = {
        "head": model.preference_head(evidence),
        "regression": regression(evidence),
        # log-ratio of policy and reference for a mask of independent pixels, up to what all hypotheses share
        "implicit_reward": (hard * gain[:, None]).flatten(2).mean(-1),
        "predicted_iou": quality,
        "agreement": agreement(hard > 0),
        "confidence": (hard * logits.sigmoid()).flatten(2).sum(-1) / hard.flatten(2).sum(-1).clamp(min=1),
    }
    questions = [(sample, q) for sample in samples for q in sample.questions]
    valid = [torch.from_numpy(~sample.decoded_ignore()) for sample, _ in questions]
    truth = [
        torch.from_numpy(m) for (_, q), v in zip(questions, valid, strict=True) for m in q.decoded_masks(*v.shape)
    ]
    return Hypotheses(
        embeddings, logits, scores, quality[:, 0], features, [drafts[i].canvas for i in owner], truth,
        [valid[i] for i in owner], [questions[i][0].image_id for i in owner],
    )  # fmt: skip


def ways(
    found: Hypotheses, decode, spread: dict[str, float], sharpness: dict | None
) -> Iterator[tuple[tuple, torch.Tensor]]:
    """Every way to make one mask of the hypotheses: (K, how, score, λ) and logits (T, h, w).

    Args:
        spread: what each score is divided by. sharpness: λ of each (K, how, score); None yields all of SHARPNESSES.
    """
    yield (0, "single", "", 0.0), found.logits[:, 0]
    for count in COUNTS:
        few = slice(0, count + 1)
        embeddings, logits = found.embeddings[:, few], found.logits[:, few]
        yield (count, "uniform embeddings", "", 0.0), decode(embeddings.mean(1))
        yield (count, "uniform logits", "", 0.0), logits.mean(1)
        for name in NAMES:
            score = found.scores[name][:, few] / spread[name]
            yield (count, "best", name, 0.0), logits[torch.arange(len(logits)), score.argmax(1)]
            for value in SHARPNESSES:
                weights = preference_attention(embeddings, score, value)
                if sharpness is None or sharpness[count, "attended embeddings", name] == value:
                    yield (count, "attended embeddings", name, value), decode(attended_embedding(embeddings, weights))
                if sharpness is None or sharpness[count, "attended logits", name] == value:
                    mean = torch.einsum("tk,tkhw->thw", weights, logits)
                    yield (count, "attended logits", name, value), mean


def counts(found: Hypotheses, logits: torch.Tensor, thresholds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersections and unions (thresholds, T) at the pictures' own size."""
    intersections, unions = [], []
    for own, canvas, truth, valid in zip(logits, found.canvases, found.truth, found.valid, strict=True):
        masks = (canvas.restore(own[None])[0] > thresholds[:, None, None]) & valid
        true = truth & valid
        intersections.append((masks & true).flatten(1).sum(1))
        unions.append((masks | true).flatten(1).sum(1))
    return torch.stack(intersections, 1), torch.stack(unions, 1)


def oracle(found: Hypotheses, threshold: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts (1, T) of each target's best hypothesis by truth."""
    every = [counts(found, found.logits[:, k], torch.tensor([threshold])) for k in range(count + 1)]
    intersection, union = (torch.cat(side) for side in zip(*every, strict=True))
    best = (intersection / union.clamp(min=1)).argmax(0, keepdim=True)
    return intersection.gather(0, best), union.gather(0, best)


def reliability(predicted: torch.Tensor, true: torch.Tensor, bins: int = 10) -> list[dict]:
    """Mean predicted and true IoU in equally filled bins of the predicted: a calibrated head has them equal."""
    order = predicted.argsort()
    return [
        {"predicted": float(predicted[part].mean()), "true": float(true[part].mean()), "n": len(part)}
        for part in order.chunk(bins)
        if len(part)
    ]
