"""Hypotheses of a target's segmentation embedding, and what an ensemble makes of them."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from popen.data.safe_io import DataError
from popen.lvlm.inference import Draft, draft_answers, read_answers
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.preference.ensemble import attended_embedding, noisy_embeddings, preference_attention
from popen.preference.sampling import View


def embedding_hypotheses(model, draft: Draft, count: int, noise: float, seed: int) -> torch.Tensor:
    """The clean embedding and K noisy copies of each target, (T, K+1, L, D); no further LVLM pass.

    Raises:
        DataError: the model was never calibrated, so the spread of its embeddings is unknown.
    """
    if model.config.embedding_std is None:
        raise DataError("config.json: embedding_std is not set; run recipes/calibrate.py on the model first")
    std = torch.tensor(model.config.embedding_std, device=model.device) * noise
    generator = torch.Generator().manual_seed(seed)
    noisy = noisy_embeddings(draft.embeddings, std, count, generator)
    return torch.cat([draft.embeddings[:, None], noisy], 1)


@torch.no_grad()
def view_hypotheses(
    model: PopenForReasoningSegmentation,
    processor,
    images: list[Image.Image],
    questions: list[str],
    drafts: list[Draft],
    views: list[list[View]],
    batch_size: int = 32,
) -> list[torch.Tensor]:
    """The clean embedding and one from each view of the picture, per draft (T, K+1, L, D).

    The draft's own words are teacher-forced on every view, all views together, so target j is target j in all of them.

    Args:
        views: K per draft; drafts about one picture object share the views of the first of them.
    """
    first = {id(image): own for image, own in reversed(list(zip(images, views, strict=True)))}
    seen = {
        key: [Image.fromarray(view.apply(np.asarray(image.convert("RGB")))) for view in first[key]]
        for key, image in {id(image): image for image in images}.items()
    }
    count = len(views[0]) if views else 0
    pictures = [view for image in images for view in seen[id(image)]]
    asked = [question for question in questions for _ in range(count)]
    answers = [draft.decoded.text for draft in drafts for _ in range(count)]
    viewed: dict[int, torch.Tensor] = {}
    for batch in read_answers(model, processor, pictures, asked, answers, batch_size):
        read = draft_answers(model, processor, batch, answers)  # their maps go with them
        viewed |= {index: draft.embeddings for index, draft in zip(batch.order, read, strict=True)}
    return [
        torch.stack([draft.embeddings, *(viewed[at * count + k] for k in range(count))], 1)
        for at, draft in enumerate(drafts)
    ]


def uniform_drafts(drafts: list[Draft], hypotheses: list[torch.Tensor]) -> list[Draft]:
    """The uniform mean of all hypotheses: the ensemble without preferences."""
    return [replace(draft, embeddings=own.mean(1)) for draft, own in zip(drafts, hypotheses, strict=True)]


@torch.no_grad()
def hypothesis_scores(
    model: PopenForReasoningSegmentation, drafts: list[Draft], hypotheses: list[torch.Tensor], batch_targets: int = 64
) -> list[torch.Tensor]:
    """Preference scores of every hypothesis, per draft (T, K+1)."""
    flat = [(d, t) for d, own in enumerate(hypotheses) for t in range(len(own))]
    scores = []
    for start in range(0, len(flat), batch_targets):
        part = flat[start : start + batch_targets]
        stacked = torch.stack([hypotheses[d][t] for d, t in part])
        features = tuple(torch.stack(level) for level in zip(*(drafts[d].features for d, _ in part), strict=True))
        scores.append(score_hypotheses(model, stacked, features))
    if not flat:
        return [own.new_zeros(own.shape[:2]) for own in hypotheses]
    return list(torch.cat(scores).split([len(own) for own in hypotheses]))


def attended_drafts(
    drafts: list[Draft], hypotheses: list[torch.Tensor], scores: list[torch.Tensor], sharpness: float
) -> list[Draft]:
    """Replaces each target's embedding by the preference-attended one of its hypotheses.

    Args:
        hypotheses, scores: per draft (T, K+1, L, D) and (T, K+1). sharpness: λ of the attention.
    """
    return [
        replace(draft, embeddings=attended_embedding(own, preference_attention(own, score, sharpness)))
        for draft, own, score in zip(drafts, hypotheses, scores, strict=True)
    ]


@torch.no_grad()
def decode_hypotheses(model, hypotheses_TKLD: torch.Tensor, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mask logits (T, K, h, w) of hypotheses; `features` are L maps (T, D, h_l, w_l), one per target."""
    targets, count = hypotheses_TKLD.shape[:2]
    picture = torch.arange(targets, device=hypotheses_TKLD.device).repeat_interleave(count)
    logits, _ = model.decode_masks(features, picture, hypotheses_TKLD.flatten(0, 1))
    return logits.unflatten(0, (targets, count))


@torch.no_grad()
def score_hypotheses(model, hypotheses_TKLD: torch.Tensor, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Preference scores (T, K): K light decodes per target, no LVLM pass."""
    logits = decode_hypotheses(model, hypotheses_TKLD, features) - model.config.mask_threshold
    return model.preference_head(model.preference_head.evidence(hypotheses_TKLD, logits, features[-1]))
