"""What a user asks for: answers with masks at the pictures' own size."""

from dataclasses import dataclass

import numpy as np

from popen.lvlm.answer_hypotheses import preferred_drafts
from popen.lvlm.hypotheses import attended_drafts, embedding_hypotheses, hypothesis_scores
from popen.lvlm.inference import Draft, decode_drafts, generate_drafts
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation


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


def finish(model: PopenForReasoningSegmentation, drafts: list[Draft], threshold: float) -> list[Answer]:
    """Decodes the masks of drafts and brings them to the pictures' own size; a pixel is in above `threshold`."""
    answers = []
    for draft, (logits, quality) in zip(drafts, decode_drafts(model, drafts), strict=True):
        masks = (draft.canvas.restore(logits) > threshold).cpu().numpy() if len(logits) else []
        targets = tuple(Target(*t) for t in zip(draft.decoded.phrases, masks, quality.tolist(), strict=True))
        answers.append(Answer(draft.decoded.text, targets, draft.decoded.incomplete))
    return answers


def segment(model, processor, images, questions, ensemble, max_new_tokens, batch_size) -> list[Answer]:
    """See `PopenForReasoningSegmentation.segment`."""
    if ensemble < 0:
        raise ValueError(f"ensemble = {ensemble}: give K >= 1 hypotheses, or 0 for a single pass")
    drafts, config = generate_drafts(model, processor, images, questions, max_new_tokens, batch_size), model.config
    if not ensemble:
        return finish(model, drafts, config.mask_threshold)
    if config.answer_weights is not None:
        drafts = preferred_drafts(
            model,
            processor,
            images,
            questions,
            drafts,
            ensemble,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
    # every draft draws from the same seed, so an answer does not depend on its neighbours in the batch
    hypotheses = [embedding_hypotheses(model, draft, ensemble, config.ensemble_noise, seed=0) for draft in drafts]
    scores = hypothesis_scores(model, drafts, hypotheses)
    drafts = attended_drafts(drafts, hypotheses, scores, config.ensemble_sharpness)
    return finish(model, drafts, config.ensemble_threshold)
