"""What a user asks for: answers with masks at the pictures' own size."""

from dataclasses import dataclass

import numpy as np
import torch

from popen.lvlm.answer_hypotheses import preferred_drafts
from popen.lvlm.hypotheses import attended_drafts, embedding_hypotheses, hypothesis_scores
from popen.lvlm.inference import Draft, decode_drafts, generate_drafts
from popen.lvlm.shifted_views import view_mean_logits


@dataclass(frozen=True)
class Target:
    """One segmented thing: its phrase, its mask at the picture's own size (H, W) bool, and a confidence 0..1."""

    phrase: str
    mask: np.ndarray
    confidence: float


@dataclass(frozen=True)
class Answer:
    """An answer in words, its targets in order, and how many broken `[SEG…]` groups were dropped from it."""

    text: str
    targets: tuple[Target, ...]
    incomplete: int = 0


def finish(drafts: list[Draft], decoded: list[tuple], logits: list[torch.Tensor], threshold: float) -> list[Answer]:
    """Drafts with masks at the pictures' own size; a pixel is in above `threshold`.

    Args:
        decoded: what `decode_drafts` says of them; confidences are read from it. logits: per draft (T, height, width).
    """
    answers = []
    for draft, (_, quality), own in zip(drafts, decoded, logits, strict=True):
        masks = (own > threshold).cpu().numpy() if len(own) else []
        targets = tuple(Target(*t) for t in zip(draft.decoded.phrases, masks, quality.tolist(), strict=True))
        answers.append(Answer(draft.decoded.text, targets, draft.decoded.incomplete))
    return answers


def segment(model, processor, images, questions, ensemble, max_new_tokens, batch_size) -> list[Answer]:
    """See `PopenForReasoningSegmentation.segment`."""
    if ensemble < 0:
        raise ValueError(f"ensemble = {ensemble}: give K >= 1 hypotheses, or 0 for a single pass")
    drafts, config = generate_drafts(model, processor, images, questions, max_new_tokens, batch_size), model.config
    if not ensemble:
        decoded = decode_drafts(model, drafts)
        logits = [draft.canvas.restore(own) for draft, (own, _) in zip(drafts, decoded, strict=True)]
        return finish(drafts, decoded, logits, config.mask_threshold)
    drafts = preferred_drafts(
        model, processor, images, questions, drafts, ensemble, batch_size, max_new_tokens=max_new_tokens
    )
    # every draft draws from the same seed, so an answer does not depend on its neighbours in the batch
    hypotheses = [embedding_hypotheses(model, draft, ensemble, config.ensemble_noise, seed=0) for draft in drafts]
    scores = hypothesis_scores(model, drafts, hypotheses)
    drafts = attended_drafts(drafts, hypotheses, scores, config.ensemble_sharpness)
    logits = view_mean_logits(model, processor, images, drafts, config.ensemble_views)
    return finish(drafts, decode_drafts(model, drafts), logits, config.ensemble_threshold)
