"""Tables of a study: every arm against the control, with intervals over pictures and training seeds.

    python -m eval.ablation_tables --study runs/ablation --split test --control continued_sft --out docs/results/popen

Writes OUT.json and OUT.svg and prints the table in Markdown. Arms answered the same questions, so differences are
paired: pictures are drawn again together for both arms, and so are seeds.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.charts import interval_chart
from eval.rows import read_rows
from popen.data.safe_io import DataError, write_json
from popen.errors import one_line_errors

HARD_KINDS = ("relation", "reasoning", "multi")
DRAWS = 2000
LEARNT = ("rewards/accuracies", "rewards/margins", "seg/accuracies", "seg/margins")
LAST_LINES = 5


@dataclass(frozen=True)
class Scores:
    """Sums per seed and picture, (S, P) each: what every number of an arm is a ratio of."""

    intersection: np.ndarray
    union: np.ndarray
    hard_intersection: np.ndarray
    hard_union: np.ndarray
    hallucinated: np.ndarray
    named: np.ndarray
    denied: np.ndarray
    empty: np.ndarray
    exact: np.ndarray
    questions: np.ndarray


RATIOS = {
    "ciou": ("intersection", "union"),
    "hard_ciou": ("hard_intersection", "hard_union"),
    "chair_i": ("hallucinated", "named"),
    "no_target_acc": ("denied", "empty"),
    "exact": ("exact", "questions"),
}


def read_arm(folder: Path, split: str) -> tuple[Scores, dict]:
    """The sums of one arm over its seeds, and how it was trained; of several learning rates the best by cIoU.

    Raises:
        DataError: nothing was scored on the split, or seeds answered different pictures.
    """
    rates = sorted({file.parent.parent for file in folder.glob(f"*/*/{split}.jsonl")})
    if not rates:
        raise DataError(f"{folder}: no {split}.jsonl in it; run eval.ablation with this split first")
    found = [(read_runs(sorted(rate.glob(f"*/{split}.jsonl"))), float(rate.name)) for rate in rates]
    scores, rate = max(found, key=lambda pair: ratio(pair[0], "ciou"))
    count = int(scores.questions[0].sum())
    trained = {"learning_rate": rate, "rates": len(rates), "seeds": len(scores.union), "n": count}
    return scores, trained | learnt(folder / f"{rate:g}")


def learnt(folder: Path) -> dict[str, float | None]:
    """What the pairs looked like at the end of training: means over the last log lines of all seeds."""
    states = [json.loads(file.read_text())["log_history"] for file in sorted(folder.glob("*/trainer_state.json"))]
    lines = [line for history in states for line in [h for h in history if "text/loss" in h][-LAST_LINES:]]
    found = {}
    for name in LEARNT:
        values = [float(line[name]) for line in lines if name in line]
        found[name] = sum(values) / len(values) if values else None
    return found


def read_runs(files: list[Path]) -> Scores:
    """The sums of one arm at one learning rate, a file per seed."""
    seeds = [read_rows(file) for file in files]
    if len({frozenset(row["id"] for row in rows) for rows in seeds}) > 1:
        raise DataError(f"{files[0]}: other seeds were scored on other pictures; delete their files and score again")
    return sums_of(seeds)


def sums_of(seeds: list[list[dict]]) -> Scores:
    """The sums of an arm from its rows, a list per seed about the same pictures."""
    pictures = sorted({row["picture"] for row in seeds[0]})
    number = {picture: i for i, picture in enumerate(pictures)}
    sums = {name: np.zeros((len(seeds), len(pictures))) for name in Scores.__dataclass_fields__}
    for s, rows in enumerate(seeds):
        for row in rows:
            at = s, number[row["picture"]]
            intersection, union = (sum(c[i] for c in row["counts"]) for i in (0, 1))
            hard = row["kind"] in HARD_KINDS
            values = {
                "intersection": intersection, "union": union,
                "hard_intersection": hard * intersection, "hard_union": hard * union,
                "hallucinated": row["hallucinated"], "named": row["named"],
                "denied": row["targets"] == row["predicted"] == 0, "empty": row["targets"] == 0,
                "exact": row["exact"], "questions": 1,
            }  # fmt: skip
            for name, value in values.items():
                sums[name][at] += value
    return Scores(**sums)


def ratio(scores: Scores, name: str, weights_SP: np.ndarray | None = None) -> float:
    """One number of an arm, over all seeds and pictures or a weighted draw of them; NaN where nothing counts."""
    top, bottom = (getattr(scores, part) for part in RATIOS[name])
    weights = np.ones_like(top) if weights_SP is None else weights_SP
    below = (weights * bottom).sum()
    return float((weights * top).sum() / below) if below else float("nan")


def draws(seeds: int, pictures: int, seed: int = 0) -> list[np.ndarray]:
    """How often each (seed, picture) is in each bootstrap draw: seeds and pictures are drawn independently."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(DRAWS):
        s = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds)
        p = np.bincount(rng.integers(pictures, size=pictures), minlength=pictures)
        found.append(np.outer(s, p).astype(float))
    return found


def compare(arm: Scores, control: Scores, name: str, resampled: list[np.ndarray]) -> dict:
    """The arm's number, its interval, and the paired difference to the control with its interval."""
    own = [ratio(arm, name, w) for w in resampled]
    gaps = [a - ratio(control, name, w) for a, w in zip(own, resampled, strict=True)]
    interval = lambda values: [float(v) for v in np.nanpercentile(values, [2.5, 97.5])]  # noqa: E731
    return {
        "value": ratio(arm, name),
        "value_95": interval(own),
        "difference": ratio(arm, name) - ratio(control, name),
        "difference_95": interval(gaps),
    }


def tabulate(study: Path, split: str, control: str) -> dict:
    """Every arm of the study that was scored on the split, the control first."""
    names = [control, *sorted(f.name for f in study.iterdir() if f.is_dir() and f.name != control)]
    read = {name: read_arm(study / name, split) for name in names if list((study / name).glob(f"*/*/{split}.jsonl"))}
    if control not in read:
        raise DataError(f"{study}: the control {control} was not scored on {split}; run eval.ablation first")
    base = read[control][0]
    shapes = {scores.union.shape for scores, _ in read.values()}
    if len(shapes) > 1:
        raise DataError(f"{study}: arms differ in seeds or pictures of {split}; run eval.ablation to the end first")
    resampled = draws(*base.union.shape)
    return {
        name: trained | {number: compare(scores, base, number, resampled) for number in RATIOS}
        for name, (scores, trained) in read.items()
    }


def markdown(table: dict) -> str:
    """One row per arm; points and percent."""
    head = [
        "arm",
        "learning rate",
        "seeds",
        *(f"{n}, %" for n in RATIOS),
        "cIoU − control",
        "CHAIR_i − control",
        *LEARNT,
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in table.items():
        cells = [name, f"{row['learning_rate']:g}", str(row["seeds"])]
        cells += [f"{100 * row[number]['value']:.2f}" for number in RATIOS]
        for number in ("ciou", "chair_i"):
            low, high = row[number]["difference_95"]
            cells.append(f"{100 * row[number]['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")
        cells += ["–" if row[name] is None else f"{row[name]:.2f}" for name in LEARNT]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(table: dict, control: str) -> str:
    """Every arm's cIoU minus the control's, in points, with its interval."""
    gains = {name: row["ciou"] for name, row in table.items() if name != control}
    ordered = sorted(gains, key=lambda name: -gains[name]["difference"])
    rows = {n: tuple(100 * x for x in (gains[n]["difference"], *gains[n]["difference_95"])) for n in ordered}
    return interval_chart(f"cIoU minus {control}, points", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", required=True, type=Path, help="output_dir of eval.ablation")
    parser.add_argument("--split", default="test")
    parser.add_argument("--control", default="continued_sft")
    parser.add_argument("--out", type=Path, help="also write OUT.json and OUT.svg")
    args = parser.parse_args()
    table = tabulate(args.study, args.split, args.control)
    if args.out is not None:
        write_json(args.out.with_suffix(".json"), table)
        args.out.with_suffix(".svg").write_text(figure(table, args.control))
    print(markdown(table))


if __name__ == "__main__":
    with one_line_errors("eval.ablation_tables"):
        main()
