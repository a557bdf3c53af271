"""What mining proposes: corrected answers with the reference's log-probabilities, and ranked mask candidates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from popen.data import rle
from popen.data.scenes import NAMES
from popen.data.schema import empty_ignore
from popen.lvlm import candidates
from popen.lvlm.calibration import truth_drafts
from popen.lvlm.candidates import seg_row, text_rows
from popen.lvlm.canvas import Canvas
from popen.lvlm.hypotheses import decode_hypotheses, embedding_hypotheses
from popen.lvlm.packing import question_branches, stack_rows
from popen.preference.hallucination import mentions, name_pattern

VOCABULARY = name_pattern(set(NAMES))

# text


@pytest.fixture(scope="module")
def mined(taught, samples):
    """Text rows of the two scenes that were not taught, at rows 5 and 6 of a data set."""
    return text_rows(*taught, samples[2:], first_row=5, batch_size=64, vocabulary=VOCABULARY)


def test_right_answers_are_no_preferences(taught, samples):
    rows, outcomes = text_rows(*taught, samples[:2], first_row=0, batch_size=64, vocabulary=VOCABULARY)
    assert rows == [] and outcomes == ["correct"] * sum(len(s.questions) for s in samples[:2])


def test_wrong_answers_become_pairs(taught, samples, mined):
    _, processor = taught
    rows, outcomes = mined
    questions = {q.id: (number, q) for number, s in enumerate(samples[2:], 5) for q in s.questions}
    assert len(outcomes) == len(questions) and len(rows) == sum(o != "correct" for o in outcomes) > 4
    assert [row["kind"] for row in rows] == [o for o in outcomes if o != "correct"]
    for row in rows:
        number, question = questions[row["id"]]
        assert row["row"] == number and row["question"] == question.question
        assert row["chosen"] != row["rejected"] and row["chosen"].count("<seg>") == len(question.masks)
        assert row["kind"] == "phrases" or row["chosen"] == question.answer
        for side in ("chosen", "rejected"):
            tokens = len(processor.answer_ids(row[side]))
            assert len(row[f"{side}_changed"]) == len(row[f"ref_{side}_logps"]) == tokens
        present = samples[row["row"] - 3].objects
        assert row["hallucinated"] == (mentions(row["rejected"], present, VOCABULARY).hallucinated > 0)
        assert any(row["chosen_changed"]) or any(row["rejected_changed"])


def test_reference_logps_are_those_of_each_answer_alone(taught, samples, mined):
    model, processor = taught
    for row in mined[0]:
        square, _ = processor.place(samples[row["row"] - 3].image)
        for side in ("chosen", "rejected"):
            batch = stack_rows([question_branches(processor, [(row["question"], row[side])], "x")], 0)
            inputs = {k: v for k, v in batch.items() if k not in ("token_sequence", "sequence_row")}
            with torch.no_grad():
                alone = model(**inputs, pixel_values=processor.pixel_values([square])).logps
            torch.testing.assert_close(torch.tensor(row[f"ref_{side}_logps"]), alone, atol=1e-4, rtol=1e-4)


def test_batches_do_not_change_the_rows(taught, samples, mined):
    rows, outcomes = text_rows(*taught, samples[2:], first_row=5, batch_size=2, vocabulary=VOCABULARY)
    assert outcomes == mined[1]
    for one, other in zip(rows, mined[0], strict=True):
        for name, value in one.items():
            assert value == (pytest.approx(other[name], abs=1e-4) if name.startswith("ref_") else other[name])


@pytest.mark.parametrize(
    "piece, letters",
    [
        ("x", 150),  # room for 24 tokens, all of them used: none is left for EOS
        ("\u00c3", 5),  # byte 0xC3, half a letter 96 times: each becomes "\ufffd", three tokens
    ],
)
def test_a_model_that_babbles_is_mined_all_the_same(tiny, samples, piece, letters):
    """What it said, written out again, may be longer than what it generated and must still fit or be dropped."""
    model, processor = tiny
    only = processor.tokenizer.convert_tokens_to_ids(piece)
    others = [i for i in range(len(processor.tokenizer)) if i != only]
    question = replace(samples[0].questions[0], question="x" * letters)
    sample = replace(samples[0], questions=(question,))
    rows, outcomes = text_rows(model, processor, [sample], 0, 64, None, suppress_tokens=others)
    assert len(outcomes) == 1 and all(row["chosen"] == question.answer for row in rows)


# masks


@pytest.fixture(scope="module")
def half(samples):
    """A picture of 56 × 96 pixels whose left half is the one target."""
    mask = np.zeros((56, 96), bool)
    mask[:, :48] = True
    question = replace(samples[0].questions[0], masks=(rle.encode(mask),))
    none = replace(samples[0].questions[-1], id="none", masks=(), phrases=())
    image = samples[0].image.crop((0, 0, 96, 56))
    return replace(samples[0], image=image, questions=(none, question), ignore=empty_ignore(56, 96))


@pytest.fixture
def three(monkeypatch):
    """Candidates on a grid of 48 × 48: everything at logit 2, the left half and three quarters of it at ±1."""
    logits = torch.full((1, 3, 48, 48), -1.0)
    logits[0, 0] = 2.0
    logits[0, 1, :, :24] = logits[0, 2, :, :18] = 1.0
    monkeypatch.setattr(candidates, "decode_hypotheses", lambda *_: logits)
    return torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 2, 16)


def features(sample):
    return torch.zeros(16, 12, 12), torch.zeros(16, 24, 24), Canvas.fit(sample.image.height, sample.image.width, 96)


def seg_row_of(model, sample, hypotheses, margin=0.02):
    coarse, fine, canvas = features(sample)
    return seg_row(model, sample, (coarse, fine), canvas, hypotheses, 7, margin)


def test_candidates_are_ranked_by_iou(tiny, half, three):
    """IoU 1/2, 1 and 3/4: inferior, superior, medium. Signs: superior minus rejected; reference: the first."""
    mined, outcomes = seg_row_of(tiny[0], half, three)
    (found,) = mined["targets"]
    assert (mined["id"], mined["row"], outcomes) == (half.image_id, 7, ["kept"])
    assert found["index"] == 0 and found["ious"] == [0.5, 1.0, 0.75]
    assert (found["superior"], found["medium"], found["inferior"]) == (1, 2, 0)
    assert found["embeddings"] == [0.0] * 32 + [1.0] * 32 + [2.0] * 32
    inferior, medium = found["regions"]
    assert inferior["rejected"] == 0 and medium["rejected"] == 2
    assert set(inferior["signs"]) == {-1} and set(inferior["ref_logits"]) == {2.0}
    assert set(medium["signs"]) == {1} and set(medium["ref_logits"]) == {2.0}
    assert {p % 48 for p in inferior["pixels"]} == set(range(24, 48))
    assert {p % 48 for p in medium["pixels"]} == set(range(18, 24))


def test_the_padding_of_a_wide_picture_is_no_region(tiny, half, three):
    """56 of 96 canvas rows are picture: 28 of the grid's 48."""
    mined, _ = seg_row_of(tiny[0], half, three)
    inferior, medium = mined["targets"][0]["regions"]
    assert {p // 48 for p in inferior["pixels"]} == {p // 48 for p in medium["pixels"]} == set(range(28))


def test_ignored_pixels_are_no_region(tiny, half, three):
    """The last quarter of the columns is ignored: everything's IoU is 48 / 72, and the region ends at column 36."""
    ignore = np.zeros((56, 96), bool)
    ignore[:, 72:] = True
    mined, _ = seg_row_of(tiny[0], replace(half, ignore=rle.encode(ignore)), three)
    assert mined["targets"][0]["ious"][0] == pytest.approx(48 / 72)
    assert {p % 48 for p in mined["targets"][0]["regions"][0]["pixels"]} == set(range(24, 36))


def test_ties_are_dropped_and_counted(tiny, half, three):
    mined, outcomes = seg_row_of(tiny[0], half, three, margin=0.6)
    assert mined["targets"] == [] and outcomes == ["tie"]
    none = replace(half, questions=half.questions[:1])
    assert seg_row_of(tiny[0], none, three[:0]) == ({"id": half.image_id, "row": 7, "targets": []}, [])


def test_targets_are_numbered_through_the_picture(taught, samples):
    """Real candidates: indices follow the questions, IoUs and evidence those of each candidate's mask."""
    model, processor = taught
    sample = samples[0]
    drafts = truth_drafts(model, processor, [sample])
    hypotheses = torch.cat([embedding_hypotheses(model, d, 4, 1.0, seed=0) for d in drafts])
    mined, outcomes = seg_row(model, sample, drafts[0].features, drafts[0].canvas, hypotheses, 0, 0.001)
    targets = sum(len(q.masks) for q in sample.questions)
    assert len(outcomes) == targets and outcomes.count("tie") < targets
    assert [t["index"] for t in mined["targets"]] == [i for i, o in enumerate(outcomes) if o != "tie"]
    truths = np.concatenate([q.decoded_masks(96, 96) for q in sample.questions])
    for found in mined["targets"]:
        own = hypotheses[found["index"]][None]
        logits = decode_hypotheses(model, own, tuple(f[None] for f in drafts[0].features))[0]
        masks = (drafts[0].canvas.restore(logits) > 0).numpy()
        truth = truths[found["index"]]
        ious = [(m & truth).sum() / (m | truth).sum() for m in masks]
        assert found["ious"] == pytest.approx(ious, abs=1e-3)
        evidence = model.preference_head.evidence(own, logits[None], drafts[0].features[-1][None])
        assert found["evidence"] == pytest.approx(evidence.flatten().tolist(), abs=1e-3)
