"""Both preference streams in one batch: token columns and region columns by hand."""

import pytest
import torch

from popen.lvlm.preference_packing import preference_batch

CHOSEN, REJECTED = "It is the red ball <seg>.", "It is the blue box <seg> there."


@pytest.fixture
def text_row(tiny):
    _, processor = tiny
    tokens = {name: len(processor.answer_ids(text)) for name, text in (("chosen", CHOSEN), ("rejected", REJECTED))}
    return {
        "id": "t0",
        "row": 0,
        "question": "Find the ball.",
        "chosen": CHOSEN,
        "rejected": REJECTED,
        "kind": "phrases",
        "chosen_changed": [i == 2 for i in range(tokens["chosen"])],
        "rejected_changed": [i in (3, 4) for i in range(tokens["rejected"])],
        "ref_chosen_logps": [-float(i) for i in range(tokens["chosen"])],
        "ref_rejected_logps": [-100.0 - i for i in range(tokens["rejected"])],
    }


def target(index, superior, medium, inferior, regions):
    """Four candidates with embeddings 10·k + index, of 2 scales and 3 channels."""
    return {
        "index": index,
        "ious": [0.5, 0.9, 0.7, 0.1],
        "superior": superior,
        "medium": medium,
        "inferior": inferior,
        "embeddings": [10.0 * k + index for k in range(4) for _ in range(6)],
        "evidence": [0.0] * 8,
        "regions": [
            {"rejected": rejected, "pixels": pixels, "signs": signs, "ref_logits": ref}
            for rejected, pixels, signs, ref in regions
        ],
    }


def test_token_columns(tiny, samples, text_row):
    """Pair 0, then a picture's questions: sequences 0 and 1 are chosen and rejected, the true answers follow."""
    _, processor = tiny
    batch = preference_batch(processor, [(text_row, samples[0])], [({"targets": []}, samples[1])], scales=2)
    sequence = batch["token_sequence"]
    assert batch["pairs"].tolist() == [[0, 1]] and int(sequence.max()) == 1 + len(samples[1].questions)
    for side, name in enumerate(("chosen", "rejected")):
        here = sequence == side
        assert batch["changed"][here].tolist() == text_row[f"{name}_changed"]
        assert batch["ref_logps"][here].tolist() == text_row[f"ref_{name}_logps"]
        assert tuple(batch["token_labels"][here].tolist()) == processor.answer_ids(text_row[name])
    assert not batch["changed"][sequence > 1].any() and not batch["ref_logps"][sequence > 1].any()
    assert (batch["anchor"] == (sequence != 1)).all()
    assert batch["token_row"].tolist() == [int(s > 1) for s in sequence]


def test_only_pictures_have_targets(tiny, samples, text_row):
    _, processor = tiny
    texts = [(text_row, samples[0]), (text_row | {"id": "t1"}, samples[2])]
    batch = preference_batch(processor, texts, [({"targets": []}, s) for s in samples[:2]], scales=2)
    masks = sum(len(q.masks) for s in samples[:2] for q in s.questions)
    assert batch["pairs"].tolist() == [[0, 1], [2, 3]]
    assert len(batch["target_row"]) == len(batch["target_masks"]) == masks
    assert batch["target_row"].unique().tolist() == [2, 3]
    assert batch["pixel_values"].shape[0] == batch["valid"].shape[0] == batch["input_ids"].shape[0] == 4
    pictures = [processor.place(s.image)[0] for s in (samples[0], samples[2], samples[0], samples[1])]
    assert torch.equal(batch["pixel_values"], processor.pixel_values(pictures))


def test_region_columns_of_both_stages(tiny, samples):
    """Two targets of the first picture and one of the second, whose targets count from behind the first's.

    Stage 1 sets the superior against the inferior; stage 2 leaves out target 2, which has no medium. Regions are
    padded with pixel 0 of sign 0.
    """
    _, processor = tiny
    first = {
        "targets": [
            target(0, 1, 2, 3, [(3, [5, 9], [1, -1], [0.5, -0.5]), (2, [7], [1], [0.25])]),
            target(2, 0, -1, 2, [(2, [4, 6, 8], [-1, -1, 1], [1.0, 2.0, 3.0])]),
        ]
    }
    second = {"targets": [target(1, 3, 0, 1, [(1, [11], [-1], [4.0]), (0, [2, 3], [1, 1], [5.0, 6.0])])]}
    batch = preference_batch(processor, [], [(first, samples[0]), (second, samples[1])], scales=2)
    offset = sum(len(q.masks) for q in samples[0].questions)
    assert batch["stage1_preferred_target"].tolist() == [0, 2, offset + 1]
    assert batch["stage1_region_pixels"].tolist() == [[5, 9, 0], [4, 6, 8], [11, 0, 0]]
    assert batch["stage1_region_signs"].tolist() == [[1, -1, 0], [-1, -1, 1], [-1, 0, 0]]
    assert batch["stage1_region_ref_logits"].tolist() == [[0.5, -0.5, 0], [1, 2, 3], [4, 0, 0]]
    assert batch["stage2_preferred_target"].tolist() == [0, offset + 1]
    assert batch["stage2_region_pixels"].tolist() == [[7, 0], [2, 3]]
    assert batch["stage2_region_signs"].tolist() == [[1, 0], [1, 1]]
    assert batch["stage2_region_ref_logits"].tolist() == [[0.25, 0], [5, 6]]
    assert batch["stage1_candidates"].shape == (3, 4, 2, 3) and batch["stage2_candidates"].shape == (2, 4, 2, 3)
    # reference, superior, rejected, inferior
    assert batch["stage1_candidates"][:, :, 0, 0].tolist() == [[0, 10, 30, 30], [2, 2, 22, 22], [1, 31, 11, 11]]
    assert batch["stage2_candidates"][:, :, 1, 2].tolist() == [[0, 10, 20, 30], [1, 31, 1, 11]]


def test_nothing_preferred(tiny, samples, text_row):
    """Ties leave empty columns, not missing ones; text alone has no masks."""
    _, processor = tiny
    batch = preference_batch(processor, [(text_row, samples[0])], [], scales=2)
    assert batch["target_masks"].shape == (0, 96, 96) and batch["pairs"].tolist() == [[0, 1]]
    for stage in (1, 2):
        assert batch[f"stage{stage}_preferred_target"].shape == (0,)
        assert batch[f"stage{stage}_region_pixels"].shape == (0, 0)
        assert len(batch[f"stage{stage}_candidates"]) == 0
    alone = preference_batch(processor, [], [({"targets": []}, samples[1])], scales=2)
    assert alone["pairs"].shape == (0, 2) and alone["anchor"].all()
