"""Writes `report.json` and a self-contained `report.html` of the demo, or prints the reports of benchmarks.

    python -m eval.report --run runs/demo --seed 0
    python -m eval.report --benchmarks runs/eval/refcoco/refcoco/testA/DIR runs/eval/muse/muse/val/DIR

The pictures are drawn by seed, before anyone has seen how they turned out; failures stay in. Either is refused where a
row is missing or stands twice.
"""

import argparse
import base64
import html
import io
import random
from pathlib import Path

import torch
from PIL import Image

from eval.benchmark import TARGETS, as_it_is, with_targets
from eval.benchmark_folder import REPORT, SUMMARY
from eval.charts import line_chart
from eval.rows import question_ids, read_rows
from popen.data.safe_io import DataError, read_json, write_json
from popen.data.schema import Sample, load_split
from popen.errors import one_line_errors
from popen.lvlm.loading import load_model
from popen.overlay import draw_masks

SIDE = 300  # pixels on the page
RUNS = ("base", "continued_sft", "popen")
KEYS = ("ciou", "giou", "chair_i", "chair_s", "no_target_acc", "n")
ARMS = {
    "base": ("base", "single"),
    "continued_sft": ("continued_sft", "single"),
    "popen": ("popen", "single"),
    "popen_ensemble": ("popen", "ensemble"),
}
CONTROLS = {
    "popen_ensemble_masks": ("popen", "ensemble_masks"),
    "popen_uniform_mean": ("popen", "uniform"),
    "popen_rectangle_ensemble": ("popen", "rectangle_ensemble"),
    "popen_shifted_views": ("popen", "views"),
    "popen_flip_tta": ("popen", "flip"),
}
TITLES = {
    "base": "base",
    "continued_sft": "continued SFT (same budget)",
    "popen": "POPEN",
    "popen_ensemble": "POPEN + preference ensemble",
    "popen_ensemble_masks": "POPEN + preference ensemble of masks, its own answers (control)",
    "popen_uniform_mean": "POPEN, uniform mean of the hypotheses (control)",
    "popen_rectangle_ensemble": "POPEN + preference ensemble of noise-rectangle views (control)",
    "popen_shifted_views": "POPEN, mean over shifted views (control)",
    "popen_flip_tta": "POPEN, flip augmentation (control)",
}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>popen demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1a1a1a}}
table{{border-collapse:collapse}}td,th{{padding:.35rem .8rem;border-bottom:1px solid #ddd;text-align:right}}
td:first-child,th:first-child{{text-align:left}}small{{color:#666}}
.cards{{display:grid;grid-template-columns:repeat(auto-fill,minmax(500px,1fr));gap:1.2rem}}
.card{{border:1px solid #ddd;border-radius:8px;padding:1rem}}.three{{display:flex;gap:.5rem}}
.three figure{{margin:0;flex:1}}.three img{{width:100%;border-radius:4px}}figcaption{{font-size:.8rem;color:#666}}
.charts{{display:flex;flex-wrap:wrap;gap:1rem}}</style>
<h1>What preference tuning changed</h1>
<p>{intro}</p>{table}<p><small>Brackets: 95 % bootstrap interval over pictures. Lower is better for CHAIR.
Free generation; the mask threshold of every row is calibrated on pictures that are not scored here.</small></p>
<h2>Training</h2><div class="charts">{charts}</div>
<h2>Twelve questions, drawn by seed</h2><div class="cards">{cards}</div></html>
"""


def main() -> None:
    args = parse()
    if args.benchmarks:
        print("\n".join([whole_benchmark(folder) for folder in args.benchmarks]))  # all of them, or none
        return
    run = Path(args.run)
    cost = read_json(run / "cost.json")
    scores = {name: whole_summary(run, name) for name in RUNS}
    every = {arm: scores[model]["arms"][how] for arm, (model, how) in (ARMS | CONTROLS).items()}
    report = {
        "arms": {arm: {key: every[arm][key] for key in KEYS} for arm in ARMS},
        "controls": {arm: {key: every[arm][key] for key in KEYS} for arm in CONTROLS},
        "seconds": cost["seconds"],
        "peak_gib": cost["peak_gib"],
        "seed": args.seed,
    }
    write_json(run / "report.json", report)
    page = PAGE.format(
        intro=f"{scores['base']['pictures']} pictures, {scores['base']['questions']} questions, seed {args.seed}, "
        f"{cost['seconds'] / 60:.1f} minutes, at most {cost['peak_gib']:.1f} GiB. "
        "Every question is answered in free generation.",
        table=table(every),
        charts=charts(run),
        cards=cards(run, args.seed, args.ensemble),
    )
    (run / "report.html").write_text(page)
    print(f"wrote {run / 'report.json'} and {run / 'report.html'}")


def whole_summary(run: Path, name: str) -> dict:
    """The summary of one evaluation, once its rows are known to hold every question of its pictures exactly once.

    Raises:
        DataError: a file is missing, or an id is missing, doubled or of no such question.
    """
    folder = run / "eval" / name
    summary = read_json(folder / "summary.json")
    read_rows(folder / "rows.jsonl", question_ids(load_split(run / "data", summary["split"]), summary["pictures"]))
    return summary


def whole_benchmark(out: Path) -> str:
    """The report of a benchmark, once its rows are known to hold every question exactly once.

    Raises:
        DataError: a file is missing, or in the rows of a protocol an id is missing, doubled or of no such question.
    """
    summary = read_json(out / SUMMARY)
    if not isinstance(summary, dict) or not summary.get("asked"):
        raise DataError(f"{out / SUMMARY}: not of a benchmark, or of an earlier popen; evaluate again")
    dataset = load_split(summary["data"], summary["split"])
    for protocol, which in summary["asked"].items():
        words = with_targets if which == TARGETS else as_it_is
        read_rows(out / f"rows_{protocol}.jsonl", question_ids(dataset, min(summary["pictures"], len(dataset)), words))
    for negatives, own in summary.get("pope", {}).items():
        file = out / f"rows_pope_{negatives}.jsonl"
        found = len(read_rows(file))
        if found != own["n"]:
            raise DataError(f"{file}: {found} probes, the summary counts {own['n']}; evaluate again")
    return (out / REPORT).read_text(encoding="utf-8")


def table(arms: dict[str, dict]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("", "cIoU", "gIoU", "CHAIR_i", "CHAIR_s", "no-target accuracy", "n"))
    rows = []
    for arm, n in arms.items():
        cells = [
            *(f"{100 * n[k]:.1f} <small>[{100 * n[f'{k}_95'][0]:.1f}, {100 * n[f'{k}_95'][1]:.1f}]</small>"
              for k in ("ciou", "giou", "chair_i")),
            f"{100 * n['chair_s']:.1f}",
            "–" if n["no_target_acc"] is None else f"{100 * n['no_target_acc']:.1f}",
            str(n["n"]),
        ]  # fmt: skip
        rows.append(f"<tr><td>{TITLES[arm]}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def charts(run: Path) -> str:
    """The curves of both tuned arms, from their trainer states."""
    logs = {
        TITLES[name]: read_json(run / folder / "trainer_state.json")["log_history"]
        for name, folder in (("continued_sft", "continued_sft"), ("popen", "popen_policy"))
    }
    wanted = {
        "rewards/margins": "text reward margin",
        "rewards/accuracies": "text reward accuracy",
        "seg/margins": "mask margin (logits)",
        "anchor/ce": "anchor cross-entropy",
    }
    drawn = []
    for key, title in wanted.items():
        lines = {n: [(e["step"], float(e[key])) for e in log if key in e] for n, log in logs.items()}
        drawn.append(line_chart(title, lines))
    return "".join(drawn)


@torch.no_grad()
def cards(run: Path, seed: int, ensemble: int, count: int = 12) -> str:
    """Question, answers and masks before and after, and the truth, for questions drawn by seed."""
    rows = load_split(run / "data", "dev")
    drawn = random.Random(seed)
    picked = []
    for index in drawn.sample(range(len(rows)), min(count, len(rows))):
        sample = Sample.from_row(rows[index])
        picked.append((sample, drawn.choice(sample.questions)))
    images, questions = [s.image for s, _ in picked], [q.question for _, q in picked]
    before, processor = load_model(run / "base")
    after, _ = load_model(run / "popen")
    old = before.eval().segment(images, questions, processor)
    new = after.eval().segment(images, questions, processor, ensemble=ensemble)
    cells = []
    for (sample, question), a, b in zip(picked, old, new, strict=True):
        truth = question.decoded_masks(sample.image.height, sample.image.width)
        figures = "".join(
            f"<figure>{picture(draw_masks(sample.image, list(masks), scale=max(1, SIDE // max(sample.image.size))))}"
            f"<figcaption>{label}: {html.escape(text)}</figcaption></figure>"
            for label, masks, text in (
                ("base", [t.mask for t in a.targets], a.text),
                ("POPEN + ensemble", [t.mask for t in b.targets], b.text),
                ("truth", truth, question.answer),
            )
        )
        cells.append(
            f'<div class="card"><b>{html.escape(question.question)}</b><div class="three">{figures}</div></div>'
        )
    return "".join(cells)


def picture(image: Image.Image) -> str:
    """The picture inside the page, at most 2 × SIDE wide: a photograph's own size would make the page unreadable."""
    image.thumbnail((2 * SIDE, 2 * SIDE))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=90)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", help="folder that recipes/path.py filled")
    which.add_argument("--benchmarks", nargs="+", type=Path, metavar="OUT", help="folders that benchmarks wrote")
    parser.add_argument("--seed", type=int, default=0, help="draws the pictures")
    parser.add_argument("--ensemble", type=int, default=8, help="K of the ensemble in the pictures")
    args = parser.parse_args()
    if args.run is not None and not (Path(args.run) / "eval").is_dir():
        raise DataError(f"{args.run}: no eval folder in it; run recipes/path.py first")
    return args


if __name__ == "__main__":
    with one_line_errors("eval.report"):
        main()
