"""Numbers a model needs beside its weights, found on held-out data: mask threshold and embedding spread."""

import torch

from popen.data.schema import Sample
from popen.lvlm.inference import Draft, decode_drafts, forced_drafts
from popen.objectives.masks import intersection_union


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
    model, samples: list[Sample], drafts: list[Draft], thresholds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersections and unions (thresholds, targets), int64, at the pictures' own size."""
    questions = [(sample, q) for sample in samples for q in sample.questions]
    intersections, unions = [], []
    for (sample, question), draft, (logits, _) in zip(questions, drafts, decode_drafts(model, drafts), strict=True):
        if len(logits) == 0:
            continue
        valid = torch.from_numpy(~sample.decoded_ignore())
        truth = torch.from_numpy(question.decoded_masks(*valid.shape))
        restored = draft.canvas.restore(logits).cpu()
        counts = [intersection_union(restored > t, truth, valid.expand_as(truth)) for t in thresholds]
        intersections.append(torch.stack([i for i, _ in counts]))
        unions.append(torch.stack([u for _, u in counts]))
    return torch.cat(intersections, 1), torch.cat(unions, 1)


def best_threshold(model, samples: list[Sample], drafts: list[Draft]) -> tuple[float, float]:
    """The logit threshold with the best cIoU among −2, −1.75, …, 2, and that cIoU."""
    thresholds = torch.arange(-8, 9) / 4
    intersection, union = threshold_counts(model, samples, drafts, thresholds)
    ciou = intersection.sum(1) / union.sum(1).clamp(min=1)
    best = int(ciou.argmax())
    return float(thresholds[best]), float(ciou[best])
