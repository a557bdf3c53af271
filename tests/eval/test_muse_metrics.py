"""MUSE's numbers: the released script derived a second time, and the corrected ones by hand."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image

from eval import muse
from eval.benchmark import Reply
from eval.metrics import MaskCounts
from eval.muse_metrics import (
    POINTS,
    MuseCounts,
    corrected_ciou,
    corrected_giou,
    match,
    matching_cost,
    matching_points,
    muse_counts,
    released_ciou,
    released_giou,
)
from popen.data.muse import muse_row, read_muse
from popen.data.schema import Sample

FEWER = 2_000  # points: quicker, and as many as the small masks here need


def counted(logits, truth, valid, question_id):
    return muse_counts(logits, truth, valid, match(logits, truth, matching_points(question_id)[:FEWER]))


def blobs(rng, count, size=24):
    """Smooth discs as logits (count, size, size), steep or soft."""
    y, x = np.mgrid[:size, :size]
    found = np.zeros((count, size, size), np.float32)
    for mask in found:
        centre, radius = rng.uniform(2, size - 2, 2), rng.uniform(0.5, size / 3)
        mask[:] = rng.uniform(0.3, 4) * (radius - np.hypot(y - centre[0], x - centre[1]))
    return torch.from_numpy(found)


def draw_items(answers=200, seed=0):
    """Items of one to three questions with up to four predictions and targets each, `answers` questions in all."""
    rng = np.random.default_rng(seed)
    items, left = [], answers
    while left:
        count = min(left, int(rng.integers(1, 4)))
        left -= count
        item = []
        for _ in range(count):
            truth = blobs(rng, int(rng.integers(1, 5))) > 0
            near = torch.where(truth, 3.0, -3.0)[rng.permutation(len(truth))] + 0.8 * torch.randn(truth.shape)
            logits = torch.cat([near, blobs(rng, int(rng.integers(0, 3)))])[: int(rng.integers(0, 6))]
            valid = torch.from_numpy(rng.random(truth.shape[1:]) < rng.choice([1.0, 0.9]))
            item.append((f"q{left}-{len(item)}", logits, truth, valid))
        items.append(item)
    return items


def released_numbers(items):
    """`ar_validate` from its description: pairs, padding with empty masks, histograms, M of the whole item."""

    def histograms(output, target):
        output = torch.where(target == 255, 255.0, output.float())
        count = lambda v: torch.histc(v.float(), bins=2, min=0, max=1).double()  # noqa: E731
        both = count(output[output == target])
        return both, count(output) + count(target) - both

    shared, union, weighted, weights = torch.zeros(2).double(), torch.zeros(2).double(), 0.0, 0.0
    for item in items:
        ious, predicted, targets = 0.0, 0, 0
        for question_id, logits, truth, valid in item:
            rows, columns = brute_match(logits, truth, matching_points(question_id)[:FEWER])
            label = lambda mask, valid=valid: torch.where(valid, mask.float(), 255.0)  # noqa: E731
            empty = torch.zeros(truth.shape[1:])
            slots = [((logits[r] > 0).float(), label(truth[c])) for r, c in zip(rows, columns, strict=True)]
            slots += [(empty, label(truth[c])) for c in range(len(truth)) if c not in columns]
            slots += [(logits[r], label(empty)) for r in range(len(logits)) if r not in rows]  # not binarised
            predicted, targets = predicted + len(logits), targets + len(truth)
            for output, target in slots:
                i, u = histograms(output, target)
                iou = i / (u + 1e-5)
                iou[u == 0] += 1.0
                ious, shared, union = ious + float(iou[1]), shared + i, union + u
        most = max(predicted, targets)
        weighted, weights = weighted + most * (ious / most), weights + most
    return weighted / (weights + 1e-5), float(shared[1] / union[1])


def brute_match(logits, truth, points):
    """The best of all assignments, its cost computed point by point between four pixels."""
    height, width = truth.shape[1:]
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    left, top = x.floor().long(), y.floor().long()

    def read(mask):
        padded = torch.nn.functional.pad(mask.double(), (1, 1, 1, 1))
        at = lambda dy, dx: padded[top + 1 + dy, left + 1 + dx]  # noqa: E731
        fx, fy = (x - left).double(), (y - top).double()
        upper, lower = at(0, 0) * (1 - fx) + at(0, 1) * fx, at(1, 0) * (1 - fx) + at(1, 1) * fx
        return upper * (1 - fy) + lower * fy

    def cost(z, t):
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(z, t)
        p = torch.sigmoid(z)
        return float(entropy + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))

    predictions, targets = [read(mask) for mask in logits], [read(mask) for mask in truth]
    table = [[cost(z, t) for t in targets] for z in predictions]
    if len(logits) <= len(truth):
        ways = [(range(len(logits)), c) for c in permutations(range(len(truth)), len(logits))]
    else:
        ways = [(r, range(len(truth))) for r in permutations(range(len(logits)), len(truth))]
    return min(ways, key=lambda way: sum(table[r][c] for r, c in zip(*way, strict=True)))


def test_two_hundred_answers_score_as_released():
    torch.manual_seed(0)
    items = draw_items()
    counts = [[counted(z, t, v, name) for name, z, t, v in item] for item in items]
    every = [q for item in counts for q in item]
    assert len(every) == 200 and all(any(getattr(q, f) for q in every) for f in ("pairs", "missed", "surplus"))
    giou, ciou = released_numbers(items)
    assert released_giou(counts) == pytest.approx(giou, abs=1e-6)
    assert released_ciou(counts) == pytest.approx(ciou, abs=1e-6)
    assert corrected_giou(every) < released_giou(counts) and corrected_ciou(every) < released_ciou(counts)


def record(rng, questions):
    """A record of MUSE's file about one picture of 24 × 24 pixels: rectangles in places of their own as targets."""
    boxes = [[(8 * int(place), int(rng.integers(1, 9))) for place in rng.permutation(3)[:n]] for n in questions]
    polygon = lambda x, h: [[x, 0, x + 6, 0, x + 6, h, x, h]]  # noqa: E731
    answers = [[{"category_name": "cup", "segmentation": polygon(x, h)} for x, h in own] for own in boxes]
    asked = ["What holds tea?"] * len(questions)  # also asked twice
    made = {"file_name": "a.png", "height": 24, "width": 24, "questions": asked, "answers": answers}
    truth = [torch.zeros(len(own), 24, 24, dtype=torch.bool) for own in boxes]
    for masks, own in zip(truth, boxes, strict=True):
        for mask, (x, h) in zip(masks, own, strict=True):
            mask[:h, x : x + 6] = True
    return made, truth


def test_records_of_one_picture_score_as_released(tmp_path):
    """From MUSE's file to the numbers: three records of one picture, surplus and lack in different ones."""
    rng = np.random.default_rng(3)
    torch.manual_seed(3)
    made, truths = zip(*(record(rng, questions) for questions in ((2, 1), (3,), (1, 1, 2))), strict=True)
    (tmp_path / "train2014").mkdir()
    Image.new("RGB", (24, 24)).save(tmp_path / "train2014" / "a.png")
    (tmp_path / "MUSE_val.json").write_text(json.dumps(made))
    (picture,), _ = read_muse(tmp_path / "MUSE_val.json")
    sample = Sample.from_row(muse_row(picture, tmp_path, "val", 10**6).row)
    replies, rows, items = iter([0, 1, 2, 3, 1, 4]), [], []
    asked = iter(sample.questions)
    for truth_of_record in truths:
        items.append([])
        for truth in truth_of_record:
            question, count = next(asked), next(replies)
            near = torch.where(truth, 3.0, -3.0) + 0.5 * torch.randn(truth.shape)
            logits = torch.cat([near, blobs(rng, 4)])[:count]
            row = {"id": question.id, "picture": sample.image_id, "kind": "reasoning"}
            row |= {"targets": len(truth), "predicted": count}
            text = "<seg>" * count
            rows.append(json.loads(json.dumps(row | muse.score(sample, question, Reply(text, (), logits)))))
            items[-1].append((question.id, logits, truth, torch.ones(24, 24, dtype=torch.bool)))
    giou, ciou = released_numbers(items)
    assert muse.METRICS["released_giou"].statistic(rows) == pytest.approx(giou, abs=1e-6)
    assert muse.METRICS["released_ciou"].statistic(rows) == pytest.approx(ciou, abs=1e-6)
    joined = released_numbers([[question for item in items for question in item]])
    assert joined[0] > giou + 0.01, "records make no difference here, so this tests nothing"


def square(left, size=8):
    """A target of 2 × 2 pixels (size, size)."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[2:4, left : left + 2] = True
    return mask


VALID = torch.ones(8, 8, dtype=torch.bool)


def test_masks_in_another_order_are_matched():
    truth = torch.stack([square(0), square(3), square(6)])
    logits = torch.where(truth, 5.0, -5.0)[[2, 0, 1]]
    assert match(logits, truth, matching_points("q")) == ((0, 2), (1, 0), (2, 1))
    counts = counted(logits, truth, VALID, "q")
    assert counts == MuseCounts(pairs=(MaskCounts(4, 4),) * 3) and (counts.predicted, counts.targets) == (3, 3)
    assert corrected_giou([counts]) == corrected_ciou([counts]) == 1.0


def test_an_invention_is_charged_by_the_corrected_numbers_only():
    """One of one target found, and 9 pixels invented of which 2 have a logit in 0.5..1."""
    invented = torch.full((8, 8), -5.0)
    invented[5:8, 5:8] = 3.0
    invented[5, 5], invented[5, 6] = 0.5, 1.0
    truth = square(0)[None]
    counts = counted(torch.stack([torch.where(truth[0], 5.0, -5.0), invented]), truth, VALID, "q")
    assert counts == MuseCounts((MaskCounts(4, 4),), (), (9,), (2,))
    assert corrected_ciou([counts]) == pytest.approx(4 / 13) and corrected_giou([counts]) == 0.5
    assert released_ciou([[counts]]) == pytest.approx(4 / 6)
    assert released_giou([[counts]]) == pytest.approx(0.5, abs=1e-5)


def test_a_sure_invention_without_a_soft_edge_is_rewarded_as_released():
    """No logit in the band: its union is 0, and the released script takes that for empty against empty."""
    counts = MuseCounts((MaskCounts(4, 4),), (), (9,), (0,))
    assert released_giou([[counts]]) == pytest.approx(1.0, abs=1e-5) and released_ciou([[counts]]) == pytest.approx(1)
    assert corrected_giou([counts]) == 0.5


def test_a_surplus_pays_for_a_lack_in_the_same_item_only_as_released():
    """Question one has an invention, question two a miss: M = max(2 + 1, 1 + 2) = 3 for the item, 4 by question."""
    one = MuseCounts((MaskCounts(4, 4),), (), (9,), (2,))
    two = MuseCounts((MaskCounts(4, 4),), (6,))
    assert released_giou([[one, two]]) == pytest.approx(2 / 3, abs=1e-5)
    assert released_giou([[one], [two]]) == pytest.approx(1 / 2, abs=1e-5)
    assert corrected_giou([one, two]) == 0.5


def test_silence_misses_every_target():
    truth = torch.stack([square(0), square(4)])
    counts = counted(torch.zeros(0, 8, 8), truth, VALID, "q")
    assert counts == MuseCounts(missed=(4, 4))
    assert corrected_giou([counts]) == corrected_ciou([counts]) == released_ciou([[counts]]) == 0


def test_ignored_pixels_are_left_out():
    valid = VALID.clone()
    valid[2] = False
    truth = square(0)[None]
    invented = torch.where(square(5), 0.75, -5.0)
    logits = torch.stack([torch.where(truth[0], 5.0, -5.0), invented])
    assert counted(logits, truth, valid, "q") == MuseCounts((MaskCounts(2, 2),), (), (2,), (2,))


def test_a_pair_of_nothing_counted_is_right_and_an_empty_invention_is_not():
    assert corrected_giou([MuseCounts((MaskCounts(0, 0),))]) == corrected_ciou([MuseCounts((MaskCounts(0, 0),))]) == 1
    assert corrected_giou([MuseCounts((MaskCounts(4, 4),), (), (0,), (0,))]) == 0.5


def test_points_are_the_questions_own():
    first, again, other = matching_points("a"), matching_points("a"), matching_points("b")
    assert first.shape == (POINTS, 2) and first.min() >= 0 and first.max() < 1
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, matching_points("a", seed=1))


def test_the_cost_by_hand():
    """One point in the middle of the only pixel: z = 0 costs ln 2, and Dice 1 − 2/2.5 inside and 1 − 1/1.5 outside."""
    z, truth = torch.zeros(1, 1, 1), torch.tensor([True, False]).reshape(2, 1, 1)
    cost = matching_cost(z, truth, torch.tensor([[0.5, 0.5]]))
    assert cost[0].tolist() == pytest.approx([np.log(2) + 1 - 2 / 2.5, np.log(2) + 1 - 1 / 1.5], abs=1e-6)


@pytest.mark.parametrize("metric", [released_giou, released_ciou])
def test_nothing_to_score_as_released(metric):
    with pytest.raises(ValueError, match="at least one"):
        metric([[MuseCounts()]])


@pytest.mark.parametrize("metric", [corrected_giou, corrected_ciou])
def test_nothing_to_score(metric):
    with pytest.raises(ValueError, match="at least one"):
        metric([MuseCounts()])


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="differ in size"):
        matching_cost(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5, dtype=torch.bool), matching_points("q"))
    with pytest.raises(ValueError, match="differ in size"):
        muse_counts(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool), VALID, ())
