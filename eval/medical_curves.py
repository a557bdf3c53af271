"""How the training of a medical segmenter went, stage by stage: curves, and dev Dice at its peak and at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.charts import line_chart
from popen.data.safe_io import DataError, read_json

CURVES = {  # a chart each: what the log calls its lines, and what the chart does
    "Loss on labels": {"seg/": ""},
    "Preference margin, logits": {"rewards/margins": "mean over R"},
    "Pairs ordered right, share": {"rewards/accuracies": "accuracy"},
    "Dev Dice": {"eval_dice": "averaged weights"},
}


@dataclass(frozen=True)
class Stage:
    """A training of a run: its name, how many steps it took, and its log lines by key: (step, value)."""

    name: str
    steps: int
    lines: dict[str, list[tuple[int, float]]]


def read_stages(run: str | Path) -> list[Stage]:
    """What `recipes/medical.py` left of its stages, `base` and then the rounds in their order.

    Raises:
        DataError: no such log, or one that is none.
    """
    root = Path(run)
    rounds = [folder for folder in root.glob("round_*") if folder.name[6:].isdigit()]
    folders = [root / "base", *sorted(rounds, key=lambda folder: int(folder.name[6:]))]
    return [_read_stage(folder) for folder in folders]


def curves(stages: Sequence[Stage]) -> dict[str, str]:
    """A chart (SVG) by title for everything that was logged; the stages follow one another along x, in steps."""
    drawn = {}
    for title, wanted in CURVES.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        start = 0
        for stage in stages:
            for key, points in stage.lines.items():
                for prefix, name in wanted.items():
                    if key == prefix or (prefix.endswith("/") and key.startswith(prefix)):
                        own = lines.setdefault(name or key.removeprefix(prefix), [])
                        own += [(start + step, value) for step, value in points]
            start += stage.steps
        if lines:
            drawn[title] = line_chart(title, lines)
    return drawn


def peak_and_last(stages: Sequence[Stage]) -> str:
    """Dev Dice of each stage at its best step and at its last as a table, or what to set to have one."""
    if not any("eval_dice" in stage.lines for stage in stages):
        return "Dev was not scored while training; `eval_strategy: steps` and `eval_steps` show peak and last.\n"
    rows = ["| stage | steps | peak dev Dice, % | at step | last dev Dice, % |", "|" + "---|" * 5]
    for stage in stages:
        points = stage.lines.get("eval_dice")
        if points:
            peak = max(points, key=lambda point: point[1])
            cells = [f"{100 * peak[1]:.2f}", str(peak[0]), f"{100 * points[-1][1]:.2f}"]
        else:
            cells = ["–", "–", "–"]
        rows.append("| " + " | ".join([stage.name.replace("_", " "), str(stage.steps), *cells]) + " |")
    return "\n".join(rows) + "\n\nThe last weights of a stage are kept, averaged; nothing is chosen by its peak.\n"


def _read_stage(folder: Path) -> Stage:
    file = folder / "trainer_state.json"
    if not file.is_file():
        raise DataError(f"{file}: no such file; give the output_dir of recipes/medical.py")
    state = read_json(file)
    log = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(log, list) or not all(isinstance(line, dict) and type(line.get("step")) is int for line in log):
        raise DataError(f"{file}: expected a log_history of lines with their step; train again")
    lines: dict[str, list[tuple[int, float]]] = {}
    for line in log:
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float):
                lines.setdefault(key, []).append((line["step"], float(value)))
    return Stage(folder.name, max((line["step"] for line in log), default=0), lines)
