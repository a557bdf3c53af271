"""What the model proposes for mining: its own answers, and candidate embeddings for every target of a picture."""

import re
from collections.abc import Callable

import numpy as np
import torch

from popen.data.sample import Question, Sample
from popen.lvlm.canvas import Canvas, counted_cells
from popen.lvlm.gallery import Gallery
from popen.lvlm.hypotheses import decode_hypotheses
from popen.lvlm.inference import generate_drafts
from popen.lvlm.modeling_popen import PopenForReasoningSegmentation
from popen.lvlm.packing import preference_branches, stack_rows
from popen.lvlm.processing_popen import PopenProcessor
from popen.preference.correcting import CORRECT, Correction, changed_tokens, correct_all_with_truth
from popen.preference.hallucination import mentions
from popen.preference.judging import iou_with_truth
from popen.preference.mining import rank

TOO_LONG = "too_long"
Corrector = Callable[[list[tuple[Sample, Question, str, tuple[str, ...]]]], list[Correction | str | None]]


def text_rows(
    model: PopenForReasoningSegmentation,
    processor: PopenProcessor,
    samples: list[Sample],
    first_row: int,
    batch_size: int,
    vocabulary: re.Pattern | None,
    corrector: Corrector = correct_all_with_truth,
    gallery: Gallery | None = None,
    **generation,
) -> tuple[list[dict], list[str]]:
    """P_t rows of some samples, and what became of every question: a correction's kind, or why it was dropped.

    Args:
        first_row: row of the first sample. vocabulary: names to look for in answers; None where nobody knows them.
        corrector: maps (sample, question, answer, phrases) of every answer to its correction, None where it is right,
            or a reason why there is none.
        gallery: where pictures that are read again are kept; one for these samples by default.
        generation: how, as for `generate_drafts`; greedy by default.
    """
    gallery = gallery or Gallery(model, processor)
    asked = [(row, sample, q) for row, sample in enumerate(samples, first_row) for q in sample.questions]
    images, questions = [s.image for _, s, _ in asked], [q.question for _, _, q in asked]
    drafts = generate_drafts(model, processor, images, questions, batch_size=batch_size, gallery=gallery, **generation)
    rows, outcomes = [], []
    corrections = corrector(
        [(s, q, d.decoded.text, d.decoded.phrases) for (_, s, q), d in zip(asked, drafts, strict=True)]
    )
    for (row, sample, question), draft, correction in zip(asked, drafts, corrections, strict=True):
        own = draft.decoded
        if not isinstance(correction, Correction):
            outcomes.append(correction or CORRECT)
            continue
        chosen, rejected = processor.answer_ids(correction.text), processor.answer_ids(own.text)
        prompt = len(processor.prefix_ids) + len(processor.question_ids(question.question))
        if prompt + max(len(chosen), len(rejected)) > processor.max_length:
            outcomes.append(TOO_LONG)  # an answer that ran to the end of the context never closed
            continue
        outcomes.append(correction.kind)
        changed_chosen, changed_rejected = changed_tokens(chosen, rejected)
        rows.append(
            {
                "id": question.id,
                "row": row,
                "question": question.question,
                "chosen": correction.text,
                "rejected": own.text,
                "kind": correction.kind,
                "hallucinated": _names_what_is_not_there(own.text, sample.objects, vocabulary),
                "chosen_changed": changed_chosen,
                "rejected_changed": changed_rejected,
            }
        )
    return _with_reference(gallery, rows, samples, first_row, batch_size), outcomes


def _names_what_is_not_there(answer: str, objects: tuple[str, ...], vocabulary: re.Pattern | None) -> bool:
    """Of a picture whose objects nobody listed (ReasonSeg, beside data sets that do) nothing is said."""
    return vocabulary is not None and bool(objects) and mentions(answer, objects, vocabulary).hallucinated > 0


@torch.no_grad()
def _with_reference(gallery: Gallery, rows, samples, first_row, batch_size) -> list[dict]:
    """Adds the reference's per-token log-probabilities of both answers, computed as training packs them."""
    model, processor = gallery.model, gallery.processor
    order = sorted(rows, key=lambda r: len(r["question"]) + len(r["chosen"]) + len(r["rejected"]))  # little padding
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        packed = [preference_branches(processor, r["question"], r["chosen"], r["rejected"], r["id"]) for r in part]
        inputs = stack_rows([p.without_targets() for p in packed], processor.tokenizer.pad_token_id)
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        shown = gallery.show([samples[r["row"] - first_row].image for r in part], [r["row"] for r in part])
        pictures = shown.pictures.of_rows(shown.rows)
        hidden, _ = model.read(inputs["input_ids"], inputs["position_ids"], inputs["attention_mask"], pictures)
        states = hidden[inputs["token_row"], inputs["token_predictor"]]
        logps = model.label_logps(states, inputs["token_labels"]).float()
        for number, row in enumerate(part):
            row["ref_chosen_logps"] = logps[inputs["token_sequence"] == 2 * number].tolist()
            row["ref_rejected_logps"] = logps[inputs["token_sequence"] == 2 * number + 1].tolist()
    return rows


@torch.no_grad()
def seg_row(
    model: PopenForReasoningSegmentation,
    sample: Sample,
    features: tuple[torch.Tensor, ...],
    canvas: Canvas,
    candidates_TKLD: torch.Tensor,
    row: int,
    margin: float,
) -> tuple[dict, list[str]]:
    """The P_s row of one picture, and for every target why it was kept or dropped.

    Every candidate is decoded on the clean picture, as its embedding would be used, and ranked by the IoU of its
    mask at the picture's own size. Targets come in the order of the picture's questions.
    """
    mined = {"id": sample.image_id, "row": row, "targets": []}
    if len(candidates_TKLD) == 0:
        return mined, []
    threshold = model.config.mask_threshold
    maps = tuple(level.expand(len(candidates_TKLD), -1, -1, -1) for level in features)
    logits = decode_hypotheses(model, candidates_TKLD, maps)
    evidence = model.preference_head.evidence(candidates_TKLD, logits - threshold, maps[-1])
    valid = torch.from_numpy(~sample.decoded_ignore())
    truths = np.concatenate([question.decoded_masks(*valid.shape) for question in sample.questions])
    counts = counted_cells(canvas.valid(~valid.numpy())[None], logits.shape[-2:])[0]
    outcomes = []
    for index, truth in enumerate(torch.from_numpy(truths)):
        masks = canvas.restore(logits[index]).cpu() > threshold
        ious = iou_with_truth(masks, truth, valid).tolist()
        ranking, outcome = rank(ious, margin)
        outcomes.append(outcome)
        if ranking is None:
            continue
        losers = [rejected for rejected in (ranking.inferior, ranking.medium) if rejected >= 0]
        mined["targets"].append(
            {
                "index": index,
                "ious": ious,
                "superior": ranking.superior,
                "medium": ranking.medium,
                "inferior": ranking.inferior,
                "embeddings": candidates_TKLD[index].flatten().float().tolist(),
                "evidence": evidence[index].flatten().float().tolist(),
                "regions": [
                    _region(logits[index], counts, ranking.superior, rejected, threshold) for rejected in losers
                ],
            }
        )
    return mined, outcomes


def _region(logits_Khw: torch.Tensor, counts_hw: torch.Tensor, superior: int, rejected: int, threshold: float) -> dict:
    """Where two candidates' masks differ on the decoder's grid, and the reference's logits there."""
    sign = (logits_Khw[superior] > threshold).float() - (logits_Khw[rejected] > threshold).float()
    sign = sign * counts_hw.to(sign)  # neither padding nor ignored pixels have a right answer
    pixels = sign.flatten().nonzero()[:, 0]
    return {
        "rejected": rejected,
        "pixels": pixels.tolist(),
        "signs": sign.flatten()[pixels].to(torch.int8).tolist(),
        "ref_logits": logits_Khw[0].flatten()[pixels].float().tolist(),
    }
