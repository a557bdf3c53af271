"""Models and batches of the two trainers, made by hand for the tests of memory and of plans."""

import copy

import torch

from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.packing import supervised_batch
from popen.lvlm.preference_packing import preference_batch


def preference_items(model, processor, samples):
    """A text pair, and a picture one of whose targets has two candidates, for each sample."""
    size = model.config.scales * model.config.decoder_dim
    items = []
    for row, sample in enumerate(samples):
        question = sample.questions[0]
        chosen, rejected = question.answer, question.answer + " It is there."
        lengths = [len(processor.answer_ids(text)) for text in (chosen, rejected)]
        text = {
            "id": question.id, "row": row, "question": question.question, "chosen": chosen, "rejected": rejected,
            "kind": "replaced", "hallucinated": True,
            "chosen_changed": [False] * lengths[0], "rejected_changed": [True] * lengths[1],
            "ref_chosen_logps": [-1.0] * lengths[0], "ref_rejected_logps": [-1.0] * lengths[1],
        }  # fmt: skip
        target = {
            "index": 0, "ious": [0.5, 0.9], "superior": 1, "medium": -1, "inferior": 0,
            "embeddings": [0.1] * (2 * size), "evidence": [0.0] * 4,
            "regions": [{"rejected": 0, "pixels": [1, 2, 3], "signs": [1, 1, -1], "ref_logits": [0.0] * 3}],
        }  # fmt: skip
        items.append((text, {"id": sample.image_id, "row": row, "targets": [target]}))
    return items


def step_batch(kind, model, processor, samples):
    """What a trainer's collator makes of the samples."""
    if kind == "SFT":
        return supervised_batch(processor, samples)
    items = preference_items(model, processor, samples)
    texts, segs = ([(item[side], s) for item, s in zip(items, samples, strict=True)] for side in (0, 1))
    return preference_batch(processor, texts, segs, model.config.scales)


def empty_copy(model):
    """The same model on the meta device."""
    with torch.device("meta"):
        empty = PopenForReasoningSegmentation(copy.deepcopy(model.config))
    return empty.train(model.training)
