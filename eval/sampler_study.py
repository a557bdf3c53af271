"""What each way to sample candidates offers: how much better the best of K is, how often, and how far it drifts.

    python -m eval.sampler_study --model popen/assets/popen-tiny --data runs/scored --out docs/results/samplers.json

Masks: true answers are teacher-forced, every candidate embedding is decoded on the clean picture, as in mining, and
read at the model's own threshold. Answers: K draws against the greedy one, each with its masks. On a tuned model the
same command tells what refreshed preferences would be mined from.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from eval.metrics import MaskCounts, bootstrap_interval, ciou, match_counts
from eval.samplers import SAMPLERS
from eval.segmentation import parts
from popen.data.safe_io import write_json
from popen.data.schema import Sample, load_split
from popen.errors import one_line_errors
from popen.lvlm.calibration import truth_drafts
from popen.lvlm.hypotheses import decode_hypotheses
from popen.lvlm.inference import generate_drafts, restored_masks
from popen.lvlm.loading import load_model
from popen.preference.sampling import item_seed

CLEARLY = 0.02  # of IoU: what mining asks of a preference


def main() -> None:
    args = parse()
    model, processor = load_model(args.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    rows = load_split(args.data, args.split)
    masks: dict[str, list[np.ndarray]] = {name: [] for name in SAMPLERS}
    answers: dict[float, list[list]] = {temperature: [] for temperature in args.temperatures}
    pictures: list[str] = []
    for samples in parts(rows, min(args.max_rows, len(rows)), "candidates"):
        owners, found = sampled_masks(model, processor, samples, args.candidates, args.seed)
        pictures += owners
        for name, table in found.items():
            masks[name].append(table)
        for temperature, own in answers.items():
            own += sampled_answers(model, processor, samples, args.candidates, temperature, args.seed)
    report = {
        "model": args.model, "data": args.data, "split": args.split, "seed": args.seed, "k": args.candidates,
        "masks": {name: mask_numbers(np.concatenate(own), pictures) for name, own in masks.items()},
        "answers": {f"temperature {t:g}": answer_numbers(own) for t, own in answers.items()},
    }  # fmt: skip
    write_json(args.out, report)
    print(markdown(report))


@torch.no_grad()
def sampled_masks(model, processor, samples: list[Sample], count: int, seed: int):
    """The picture of each of T targets, and per sampler (T, K+1, 3): intersection, union and drift of each candidate.

    Candidate 0 is the clean one; drift is ‖e − e₀‖ / ‖e₀‖, the mean over scales.
    """
    drafts = truth_drafts(model, processor, samples)
    asked = [(sample, question) for sample in samples for question in sample.questions]
    owners = [s.image_id for (s, _), draft in zip(asked, drafts, strict=True) for _ in range(len(draft.embeddings))]
    found = {}
    for name, sampler in SAMPLERS.items():
        tables = []
        for (sample, question), draft, own in zip(
            asked, drafts, sampler(model, processor, samples, drafts, count, seed), strict=True
        ):
            if not len(own):
                continue
            features = tuple(level.expand(len(own), -1, -1, -1) for level in draft.features)
            logits = decode_hypotheses(model, own, features)
            valid = torch.from_numpy(~sample.decoded_ignore())
            truth = torch.from_numpy(question.decoded_masks(*valid.shape)) & valid
            mask = torch.stack([draft.canvas.restore(row) for row in logits]).cpu() > model.config.mask_threshold
            mask = mask & valid
            intersection = (mask & truth[:, None]).flatten(2).sum(-1)
            union = (mask | truth[:, None]).flatten(2).sum(-1)
            clean = own[:, :1]
            drift = ((own - clean).norm(dim=-1) / clean.norm(dim=-1).clamp(min=1e-6)).mean(-1).cpu()
            tables.append(torch.stack([intersection, union, drift], -1).double().numpy())
        found[name] = np.concatenate(tables) if tables else np.zeros((0, count + 1, 3))
    return owners, found


def mask_numbers(table_TK3: np.ndarray, pictures: list[str]) -> dict:
    """What a sampler offers over the clean candidate; cIoU in 0..1, shares of the targets, 95 % over pictures."""
    intersection, union, drift = np.moveaxis(table_TK3, -1, 0)
    iou = intersection / np.maximum(union, 1)
    best = np.take_along_axis(table_TK3, iou.argmax(1)[:, None, None], 1)[:, 0]
    others = iou[:, 1:]
    groups: dict[str, list[int]] = {}
    for index, picture in enumerate(pictures):
        groups.setdefault(picture, []).append(index)

    def gain(chosen: list[list[int]]) -> float:
        rows = [i for group in chosen for i in group]
        totals = best[rows].sum(0), table_TK3[rows, 0].sum(0)
        return float(totals[0][0] / totals[0][1] - totals[1][0] / totals[1][1])

    return {
        "clean": float(intersection[:, 0].sum() / union[:, 0].sum()),
        "best_minus_clean": gain(list(groups.values())),
        "best_minus_clean_95": bootstrap_interval(list(groups.values()), gain),
        "mean_iou": float(others.mean()),
        "superior_beats_clean": float((others.max(1) - iou[:, 0] > CLEARLY).mean()),
        "superior_minus_clean_iou": float((others.max(1) - iou[:, 0]).mean()),
        "preference_mined": float((iou.max(1) - iou.min(1) >= CLEARLY).mean()),
        "drift": float(drift[:, 1:].mean()),
        "targets": len(table_TK3),
    }


@torch.no_grad()
def sampled_answers(model, processor, samples: list[Sample], count: int, temperature: float, seed: int) -> list[list]:
    """Per question: its picture, whether each answer is exact, and each answer's counts; the greedy one first."""
    asked = [(sample, question) for sample in samples for question in sample.questions]
    images, questions = [s.image for s, _ in asked], [q.question for _, q in asked]
    found: list[list] = [[sample.image_id, [], []] for sample, _ in asked]
    for k in range(count + 1):
        seeds = {"seeds": [item_seed(seed, q.id, k) for _, q in asked], "temperature": temperature} if k else {}
        drafts = generate_drafts(model, processor, images, questions, batch_size=128, **seeds)
        for index, logits in enumerate(restored_masks(model, drafts)):
            sample, question = asked[index]
            valid = ~sample.decoded_ignore()
            mask = (logits > model.config.mask_threshold).cpu().numpy().reshape(-1, *valid.shape)
            counts = match_counts(mask, question.decoded_masks(*valid.shape), valid)
            found[index][1].append(drafts[index].decoded.text == question.answer)
            found[index][2].append(counts)
    return found


def answer_numbers(rows: list[list]) -> dict:
    """What drawn answers offer over the greedy one, by the mean IoU of an answer's slots; 95 % over pictures."""
    quality = [
        [np.mean([c.intersection / c.union if c.union else 1.0 for c in own]) for own in row[2]] for row in rows
    ]
    best = [row[2][int(np.argmax(own))] for row, own in zip(rows, quality, strict=True)]
    groups: dict[str, list[tuple[list[MaskCounts], list[MaskCounts]]]] = {}
    for row, own in zip(rows, best, strict=True):
        groups.setdefault(row[0], []).append((own, row[2][0]))

    def gain(chosen: list) -> float:
        sides = [[c for group in chosen for pair in group for c in pair[side]] for side in (0, 1)]
        return ciou(sides[0]) - ciou(sides[1])

    drawn = np.asarray(quality)
    return {
        "greedy": ciou([c for row in rows for c in row[2][0]]),
        "best_minus_greedy": gain(list(groups.values())),
        "best_minus_greedy_95": bootstrap_interval(list(groups.values()), gain),
        "drawn_beats_greedy": float((drawn[:, 1:].max(1) - drawn[:, 0] > CLEARLY).mean()),
        "drawn_minus_greedy_iou": float((drawn[:, 1:].mean(1) - drawn[:, 0]).mean()),
        "exact_greedy": float(np.mean([row[1][0] for row in rows])),
        "exact_any": float(np.mean([any(row[1]) for row in rows])),
        "questions": len(rows),
    }


def markdown(report: dict) -> str:
    """Points and percent."""
    lines = ["| sampler | best of K + clean − clean, cIoU | mean IoU | superior beats clean | mined | drift |"]
    lines.append("|" + "---|" * 6)
    for name, n in report["masks"].items():
        low, high = n["best_minus_clean_95"]
        cells = [name, f"{100 * n['best_minus_clean']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"]
        cells += [f"{100 * n['mean_iou']:.1f}", f"{100 * n['superior_beats_clean']:.0f} %"]
        cells += [f"{100 * n['preference_mined']:.0f} %", f"{n['drift']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| answers | best of K + greedy − greedy, cIoU | drawn beats greedy | exact, greedy and any |"]
    lines.append("|" + "---|" * 4)
    for name, n in report["answers"].items():
        low, high = n["best_minus_greedy_95"]
        cells = [name, f"{100 * n['best_minus_greedy']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"]
        cells += [f"{100 * n['drawn_beats_greedy']:.0f} %"]
        cells += [f"{100 * n['exact_greedy']:.1f} % and {100 * n['exact_any']:.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--candidates", type=int, default=8, metavar="K")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.7, 1.0])
    parser.add_argument("--max-rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    if args.candidates < 1 or args.max_rows < 1:
        parser.error(f"--candidates {args.candidates} --max-rows {args.max_rows}: give at least 1 of each")
    return args


if __name__ == "__main__":
    with one_line_errors("eval.sampler_study"):
        main()
