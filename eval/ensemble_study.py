"""The ensemble taken apart: which score, how many hypotheses, embeddings or logits, against what it must beat.

    python -m eval.ensemble_study --model runs/path/popen --base runs/path/base --preferences runs/path/mined_popen \\
        --data runs/path/data --split dev --out docs/results/ensemble_study.json

True answers are teacher-forced, so that masks alone differ. Hypotheses are noise on the segmentation embedding. Every
row gets its own sharpness and mask threshold on the calibration split; every score is scaled to a spread of 1 there.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from eval.ensemble_ways import COUNTS, NAMES, Hypotheses, counts, hypotheses_of, oracle, reliability, ways
from eval.segmentation import parts
from popen.data.safe_io import write_json
from popen.data.schema import load_split
from popen.errors import one_line_errors
from popen.lvlm.calibration import THRESHOLDS
from popen.lvlm.loading import load_model
from popen.lvlm.mining import load_mined
from popen.lvlm.preference_head import PreferenceHead
from popen.training.preference_head import head_tensors, train_regression_head

DRAWS = 1000


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    model, processor = load_model(args.model)
    base, _ = load_model(args.base)
    model.eval(), base.eval()
    evidence, ious = head_tensors(load_mined(args.preferences)[1], model.config.scales)
    regression = PreferenceHead(model.config.decoder_dim, model.config.scales)
    train_regression_head(regression, evidence, ious, args.steps, 128, 1e-3, args.seed)

    def chunks(split: str, most: int | None) -> Iterator[Hypotheses]:
        rows = load_split(args.data, split)
        for samples in parts(rows, len(rows) if most is None else min(most, len(rows)), split):
            yield hypotheses_of(model, base, regression, processor, samples)

    def decoder(found: Hypotheses):
        picture = torch.arange(len(found.embeddings))
        return lambda embeddings: model.decode_masks(found.features, picture, embeddings)[0]

    with torch.no_grad():
        spread = score_spread(chunks(args.calibration_split, args.calibration_rows))
        tuned = calibrate(chunks(args.calibration_split, args.calibration_rows), decoder, spread)
        rows, curve = measure(chunks(args.split, args.max_rows), decoder, spread, tuned)
    report = {"model": args.model, "data": args.data, "split": args.split, "seed": args.seed, "rows": rows}
    write_json(args.out, report | {"reliability": curve})
    print(markdown(rows))


def score_spread(chunks: Iterator[Hypotheses]) -> dict[str, float]:
    """Standard deviation of each score within targets."""
    squares: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}
    for found in chunks:
        for name in NAMES:
            squares[name].append((found.scores[name] - found.scores[name].mean(1, keepdim=True)).square().flatten())
    return {name: max(float(torch.cat(own).mean().sqrt()), 1e-6) for name, own in squares.items()}


def calibrate(chunks: Iterator[Hypotheses], decoder, spread: dict[str, float]) -> dict[tuple, tuple[float, float]]:
    """Sharpness and threshold of each (K, how, score), the pair with the best cIoU."""
    totals: dict[tuple, torch.Tensor] = {}
    for found in chunks:
        for way, logits in ways(found, decoder(found), spread, None):
            both = torch.stack([c.sum(1) for c in counts(found, logits, THRESHOLDS)])
            totals[way] = totals.get(way, 0) + both
    best: dict[tuple, tuple[float, float, float]] = {}
    for (*what, sharpness), (intersection, union) in totals.items():
        ciou = intersection / union.clamp(min=1)
        candidate = (float(ciou.max()), sharpness, float(THRESHOLDS[ciou.argmax()]))
        best[tuple(what)] = max(best.get(tuple(what), candidate), candidate)
    return {what: (sharpness, threshold) for what, (_, sharpness, threshold) in best.items()}


def measure(chunks: Iterator[Hypotheses], decoder, spread, tuned) -> tuple[list[dict], list[dict]]:
    """One row per way with cIoU, gain over the single pass and intervals over pictures; and the reliability curve."""
    sums: dict[tuple, dict[str, np.ndarray]] = {}
    predicted, true = [], []
    sharpness = {what: value for what, (value, _) in tuned.items()}
    for found in chunks:
        for (*what, _), logits in ways(found, decoder(found), spread, sharpness):
            intersection, union = counts(found, logits, torch.tensor([tuned[tuple(what)][1]]))
            add(sums.setdefault(tuple(what), {}), found.picture, intersection[0], union[0])
            if what[1] == "single":
                predicted.append(found.predicted_iou)
                true.append(intersection[0] / union[0].clamp(min=1))
        for count in COUNTS:
            best = oracle(found, tuned[0, "single", ""][1], count)
            add(sums.setdefault((count, "oracle", ""), {}), found.picture, best[0][0], best[1][0])
    pictures = sorted(sums[0, "single", ""])
    tables = {what: np.stack([own[p] for p in pictures]).astype(float) for what, own in sums.items()}
    draws = np.random.default_rng(0).integers(len(pictures), size=(DRAWS, len(pictures)))
    single = tables[0, "single", ""]
    rows = []
    for (count, how, score), table in tables.items():
        drawn, other = table[draws].sum(1), single[draws].sum(1)
        gains = drawn[:, 0] / drawn[:, 1] - other[:, 0] / other[:, 1]
        value, reference = table.sum(0), single.sum(0)
        gain = value[0] / value[1] - reference[0] / reference[1]
        low, high = np.percentile(gains, [2.5, 97.5])
        rows.append(
            {"k": count, "how": how, "score": score, "ciou": value[0] / value[1], "gain": gain, "gain_95": [low, high],
             "sharpness": tuned.get((count, how, score), (0.0, 0.0))[0], "pictures": len(pictures)}
        )  # fmt: skip
    return rows, reliability(torch.cat(predicted), torch.cat(true))


def add(own: dict[str, np.ndarray], pictures: list[str], intersection: torch.Tensor, union: torch.Tensor) -> None:
    for picture, i, u in zip(pictures, intersection.tolist(), union.tolist(), strict=True):
        own[picture] = own.get(picture, np.zeros(2, np.int64)) + np.array([i, u])


def markdown(rows: list[dict]) -> str:
    lines = ["| K | how | score | cIoU | gain |", "|---|---|---|---|---|"]
    for r in rows:
        low, high = r["gain_95"]
        gain = f"{100 * r['gain']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
        lines.append(f"| {r['k']} | {r['how']} | {r['score']} | {100 * r['ciou']:.2f} | {gain} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="popen model folder with a trained preference head")
    parser.add_argument("--base", required=True, help="the reference it was tuned from, for the implicit reward")
    parser.add_argument("--preferences", required=True, help="mined from the model: trains the regression head")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--calibration-split", default="calibration")
    parser.add_argument("--calibration-rows", type=int, default=200)
    parser.add_argument("--max-rows", type=int, default=None)
    parser.add_argument(
        "--steps", type=int, default=1500, help="of the regression head, as many as the preference head's"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    if args.calibration_split == args.split:
        parser.error(f"--calibration-split {args.split}: what is tuned on the split that is scored would flatter it")
    return args


if __name__ == "__main__":
    with one_line_errors("eval.ensemble_study"):
        main()
