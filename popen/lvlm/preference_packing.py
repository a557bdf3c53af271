"""Two preference streams in one forward pass: text pairs and pictures with segmentation preferences."""

import torch

from popen.data.preference_schema import TargetPreference
from popen.data.schema import Sample
from popen.lvlm.packing import canvas_masks, preference_branches, question_branches, stack_rows
from popen.lvlm.processing_popen import PopenProcessor
from popen.preference.curriculum import STAGES, rejected_at
from popen.preference.mining import Ranking


def preference_batch(
    processor: PopenProcessor,
    text_pairs: list[tuple[dict, Sample]],
    pictures: list[tuple[dict, Sample]],
    scales: int,
) -> dict[str, torch.Tensor]:
    """Tensors of one step: P text pairs `[picture question | chosen | rejected]`, then pictures with their questions.

    Besides what the model takes: `pairs` (P, 2) sequence numbers of chosen and rejected; per token `changed`,
    `ref_logps` and `anchor` (chosen answers and true answers); per segmentation preference of each curriculum stage
    `preferred_target` (M,), `region_pixels`, `region_signs`, `region_ref_logits` (M, R, zero-padded),
    `candidates` (M, 4, L, D): reference, superior, rejected and inferior embeddings, and `gap` (M,): IoU of the
    superior minus that of the rejected, as `stage1_…` and `stage2_…`.
    """
    rows = [
        preference_branches(processor, row["question"], row["chosen"], row["rejected"], row["id"]).without_targets()
        for row, _ in text_pairs
    ]
    rows += [
        question_branches(processor, [(q.question, q.answer) for q in sample.questions], sample.image_id)
        for _, sample in pictures
    ]
    batch = stack_rows(rows, processor.tokenizer.pad_token_id)
    everything = text_pairs + pictures
    placed = [processor.place(sample.image, sample.image_id) for _, sample in everything]
    batch["pixel_values"] = processor.pixel_values([square for square, _ in placed])
    batch["valid"] = torch.stack(
        [c.valid(s.decoded_ignore()) for (_, c), (_, s) in zip(placed, everything, strict=True)]
    )
    masks = [
        canvas_masks(canvas, question)
        for (_, canvas), (_, sample) in zip(placed[len(text_pairs) :], pictures, strict=True)
        for question in sample.questions
    ]
    side = processor.image_size
    batch["target_masks"] = torch.cat(masks) if masks else torch.zeros(0, side, side)
    batch |= _token_columns(batch, [row for row, _ in text_pairs])
    preferences, first = [], 0
    for row, sample in pictures:
        targets = [TargetPreference.from_row(fields, scales) for fields in row["targets"]]
        preferences += [(first + preference.index, preference) for preference in targets]
        first += sum(len(q.masks) for q in sample.questions)
    for stage in STAGES:
        columns = _region_columns(preferences, stage)
        batch |= {f"stage{stage}_{name}": column for name, column in columns.items()}
    return batch


def _token_columns(batch: dict, text_rows: list[dict]) -> dict[str, torch.Tensor]:
    sequence = batch["token_sequence"]
    changed, ref = torch.zeros(len(sequence), dtype=torch.bool), torch.zeros(len(sequence))
    anchor = sequence >= 2 * len(text_rows)
    for number, row in enumerate(text_rows):
        for side, name in ((0, "chosen"), (1, "rejected")):
            here = sequence == 2 * number + side
            changed[here] = torch.tensor(row[f"{name}_changed"])
            ref[here] = torch.tensor(row[f"ref_{name}_logps"])
        anchor |= sequence == 2 * number
    pairs = torch.arange(2 * len(text_rows)).view(-1, 2)
    return {"changed": changed, "ref_logps": ref, "anchor": anchor, "pairs": pairs}


def _region_columns(preferences: list[tuple[int, TargetPreference]], stage: int) -> dict[str, torch.Tensor]:
    found = []
    for target, preference in preferences:
        ranking = Ranking(preference.superior, preference.medium, preference.inferior)
        rejected = rejected_at(stage, ranking)
        if rejected >= 0:
            found.append((target, preference, rejected))
    regions = [preference.region(rejected) for _, preference, rejected in found]
    width = max((len(region.pixels) for region in regions), default=0)
    count = len(regions)
    pixels = torch.zeros(count, width, dtype=torch.long)
    signs, ref = torch.zeros(count, width), torch.zeros(count, width)
    for i, region in enumerate(regions):
        size = len(region.pixels)
        pixels[i, :size] = torch.from_numpy(region.pixels)
        signs[i, :size] = torch.from_numpy(region.signs)
        ref[i, :size] = torch.from_numpy(region.ref_logits)
    candidates = [torch.from_numpy(p.embeddings[[0, p.superior, rejected, p.inferior]]) for _, p, rejected in found]
    gaps = [float(p.ious[p.superior] - p.ious[rejected]) for _, p, rejected in found]
    return {
        "gap": torch.tensor(gaps),
        "preferred_target": torch.tensor([target for target, _, _ in found], dtype=torch.long),
        "region_pixels": pixels,
        "region_signs": signs,
        "region_ref_logits": ref,
        "candidates": torch.stack(candidates) if candidates else torch.zeros(0, 4, 1, 1),
    }
