"""gIoU and cIoU of 10,000 masks of 640 × 480 pixels: ours against the loop over histograms that LISA evaluates with.

    python -m benchmarks.evaluation --out docs/results/bench/evaluation.json

The peer is written from LISA's published description of `intersectionAndUnionGPU`: per mask three histograms of the
pixels' classes, ignored pixels dropped, areas kept as tensors. It runs on this machine's processor, as ours does.
"""

import numpy as np
import torch

from benchmarks.figures import figure, parser, report
from benchmarks.turns import take_turns
from eval.lisa_metrics import SMOOTH_CIOU, SMOOTH_IOU, SMOOTH_MEAN, lisa_ciou, lisa_giou, mask_counts
from eval.metrics import ciou, giou, match_counts
from popen.data.safe_io import DataError
from popen.errors import one_line_errors

CLASSES, IGNORED = 2, 255
KEPT = 200  # different masks; the same ones come again and do not fit a cache


def masks(count: int, height: int, width: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(predicted, truth, valid) of ellipses that overlap; a strip is ignored in every tenth, some masks are empty."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    found = []
    for number in range(count):
        cy, cx = draw.uniform(0.3, 0.7) * height, draw.uniform(0.3, 0.7) * width
        ry, rx = draw.uniform(0.05, 0.4) * height, draw.uniform(0.05, 0.4) * width
        truth, predicted = (
            ((y - cy - dy) / ry) ** 2 + ((x - cx - dx) / rx) ** 2 < 1 for dy, dx in ((0, 0), draw.normal(0, 8, 2))
        )
        valid = np.ones((height, width), bool)
        if number % 10 == 0:
            valid[: height // 8] = False
        if number % 17 == 0:
            truth = np.zeros_like(truth)
        found.append((predicted, truth, valid))
    return found


def histogram_loop(pool, count: int) -> tuple[float, float]:
    """gIoU and cIoU the way LISA's validation computes them."""
    ious, intersections, unions = torch.zeros(CLASSES), torch.zeros(CLASSES), torch.zeros(CLASSES)
    for number in range(count):
        predicted, truth, valid = pool[number % len(pool)]
        output, target = torch.from_numpy(predicted).int(), torch.from_numpy(truth).int()
        target[~torch.from_numpy(valid)] = IGNORED
        output, target = output.view(-1), target.view(-1)
        output[target == IGNORED] = IGNORED
        both = output[output == target]
        areas = [torch.histc(part.float(), bins=CLASSES, min=0, max=CLASSES - 1) for part in (both, output, target)]
        union = areas[1] + areas[2] - areas[0]
        intersections, unions = intersections + areas[0], unions + union
        iou = areas[0] / (union + SMOOTH_IOU)
        iou[union == 0] += 1.0
        ious = ious + iou
    return float(ious[1] / (count + SMOOTH_MEAN)), float(intersections[1] / (unions[1] + SMOOTH_CIOU))


def ours(pool, count: int) -> tuple[float, float]:
    """gIoU and cIoU with LISA's ε, from `eval.lisa_metrics`."""
    counts = [mask_counts(*pool[number % len(pool)]) for number in range(count)]
    return lisa_giou(counts), lisa_ciou(counts)


def ours_matched(pool, count: int) -> tuple[float, float]:
    """gIoU and cIoU of answers with any number of masks, from `eval.metrics`; here each has one."""
    counts = []
    for number in range(count):
        predicted, truth, valid = pool[number % len(pool)]
        counts += match_counts(predicted[None], truth[None], valid)
    return giou(counts), ciou(counts)


def main() -> None:
    args = parser(__doc__, turns=1).parse_args()
    count, (height, width) = (40, (48, 64)) if args.toy else (10_000, (480, 640))
    pool = masks(min(KEPT, count), height, width, args.seed)
    ways = {"histograms": histogram_loop, "ours": ours, "ours, matched": ours_matched}
    found = {name: way(pool, min(KEPT, count)) for name, way in ways.items()}
    # the peer adds up areas in single precision
    if not np.allclose(found["ours"], found["histograms"], atol=1e-5):
        raise DataError(f"gIoU and cIoU differ: {found}; a comparison of speed would mean nothing")
    sides = {name: lambda way=way: way(pool, count) for name, way in ways.items()}
    taken = take_turns(sides, args.turns, "evaluation", warm_up=0)  # each has just run on the whole pool
    read = 3 * height * width * count / 1e9
    figures = [
        figure(
            f"gIoU and cIoU of {count:,} masks {width} × {height}: histograms / {name}", taken, "histograms", name,
            at_least=bar, limit="memory bandwidth",
        )
        for name, bar in (("ours", 3.0), ("ours, matched", 3.0))
    ]  # fmt: skip
    for own, name in zip(figures, ("ours", "ours, matched"), strict=True):
        own.notes.update({"giou_ciou": {side: found[side] for side in own.seconds}})
        own.notes["gigabytes_per_s"] = read / own.seconds[name]
    report(args, figures, masks=count)


if __name__ == "__main__":
    with one_line_errors("benchmarks.evaluation"):
        main()
