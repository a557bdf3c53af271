"""The preference ensemble: K hypotheses of one target are scored, attended to, and decoded once.

Knows embeddings, masks and scores; not where they come from.
"""

import torch
from torch.nn import functional as F


def noisy_embeddings(embedding_TLD: torch.Tensor, noise_std: torch.Tensor, count: int, generator: torch.Generator):
    """K noisy copies of each segmentation embedding, (T, K, L, D); they cost no further LVLM pass.

    Args:
        embedding_TLD: clean embeddings. noise_std: spread per scale (L,), in embedding units.
        count: K >= 1.
    Raises:
        ValueError: count < 1.
    """
    if count < 1:
        raise ValueError(f"K = {count}: an ensemble needs at least one hypothesis (K >= 1)")
    shape = (embedding_TLD.shape[0], count, *embedding_TLD.shape[1:])
    noise = torch.randn(shape, generator=generator).to(embedding_TLD)
    return embedding_TLD[:, None] + noise * noise_std.to(embedding_TLD)[:, None]


def preference_attention(embeddings_TKLD: torch.Tensor, scores_TK: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Attention weights of K hypotheses, (T, K), from embedding similarity and preference score.

    α_k = softmax_k(cos(q, e_k) + λ s_k) with q the embedding of the hypothesis preferred most
    (POPEN, section on the ensemble; the equation is our reconstruction).

    Args:
        embeddings_TKLD: hypotheses. scores_TK: preference scores, higher is better. sharpness: λ >= 0.
    Raises:
        ValueError: the first two axes differ.
    """
    if embeddings_TKLD.shape[:2] != scores_TK.shape:
        raise ValueError(
            f"embeddings {tuple(embeddings_TKLD.shape)} and scores {tuple(scores_TK.shape)} differ in (T, K)"
        )
    keys = F.normalize(embeddings_TKLD.flatten(2), dim=-1)
    best = scores_TK.argmax(1)
    query = keys[torch.arange(len(keys)), best]
    similarity = torch.einsum("td,tkd->tk", query, keys)
    return (similarity + sharpness * scores_TK).softmax(1)


def attended_embedding(embeddings_TKLD: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """The weighted mean of hypotheses, (T, L, D): one embedding, one decode."""
    return torch.einsum("tk,tkld->tld", weights_TK.to(embeddings_TKLD), embeddings_TKLD)


def agreement(masks_TKHW: torch.Tensor) -> torch.Tensor:
    """Mean IoU of each hypothesis with the other K−1, (T, K) in 0..1; 1 where K = 1 or both masks are empty."""
    flat = masks_TKHW.flatten(2).float()
    intersection = flat @ flat.transpose(1, 2)
    area = flat.sum(-1)
    union = area[:, :, None] + area[:, None, :] - intersection
    iou = torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
    count = masks_TKHW.shape[1]
    return (iou.sum(-1) - 1) / (count - 1) if count > 1 else torch.ones_like(area)


def mask_evidence(logits_TKHW: torch.Tensor, features_TDHW: torch.Tensor) -> torch.Tensor:
    """What the pixels say about each hypothesis, (T, K, 2D + 5).

    Picture features pooled inside the mask and in a band around it, mean confidence and mean |logit| inside,
    area share, agreement with the other hypotheses, and the share of uncertain pixels.

    Args:
        logits_TKHW: mask logits of K hypotheses. features_TDHW: the finest feature map, one per target, any h, w.
    """
    logits = F.interpolate(logits_TKHW.float(), features_TDHW.shape[-2:], mode="bilinear", antialias=True)
    soft = logits.sigmoid()
    hard = (logits > 0).float()
    band = F.max_pool2d(hard, 5, stride=1, padding=2) - hard
    features = features_TDHW.float().flatten(2).transpose(1, 2)

    def pooled(weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten(2) @ features / weight.flatten(2).sum(-1, keepdim=True).clamp(min=1e-3)

    area = hard.flatten(2).sum(-1)
    inside = area.clamp(min=1)
    confidence = (soft * hard).flatten(2).sum(-1) / inside
    strength = (logits.abs() * hard).flatten(2).sum(-1) / inside
    uncertain = (logits.abs() < 1).float().flatten(2).mean(-1)
    scalars = [confidence, strength / 10, area / hard.shape[-2:].numel(), agreement(logits_TKHW > 0), uncertain]
    return torch.cat([pooled(soft * hard), pooled(band), torch.stack(scalars, -1)], -1)
