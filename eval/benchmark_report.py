"""From rows to numbers with intervals, and to a table with published rows beside them, each with its protocol."""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from tqdm.auto import tqdm

from eval.claims import head_commit, machine
from eval.metrics import bootstrap_interval
from eval.published_rows import PROTOCOLS, Published


@dataclass(frozen=True)
class Metric:
    """One number: its heading, how it follows from rows (at least one), and which rows it is about."""

    heading: str
    statistic: Callable[[list[dict]], float | None]
    about: Callable[[dict], bool] = lambda row: True
    interval: bool = True


def numbers(rows: list[dict], metrics: dict[str, Metric]) -> dict:
    """Every metric of the rows, None where it is about none of them, and 95 % bootstrap intervals over pictures."""
    found: dict = {"n": len(rows)}
    for name, metric in metrics.items():
        own = [row for row in rows if metric.about(row)]
        found[name] = metric.statistic(own) if own else None
        if metric.interval:
            pictures: dict[str, list[dict]] = {}
            for row in own:
                pictures.setdefault(row["picture"], []).append(row)
            flat = lambda drawn, m=metric: m.statistic([row for group in drawn for row in group])  # noqa: E731
            found[f"{name}_95"] = bootstrap_interval(list(pictures.values()), flat) if own else None
    return found


def results(rows: dict[str, list[dict]], metrics: dict[str, Metric], suffix: str = "") -> list[dict]:
    """A result per protocol and arm, its numbers also by kind of question.

    Args:
        rows: of each protocol. suffix: to the arms' names.
    """
    plain = {name: replace(metric, interval=False) for name, metric in metrics.items()}
    found = []
    for protocol, own in rows.items():
        for arm in tqdm(own[0]["arms"] if own else [], desc=f"intervals, {PROTOCOLS[protocol]}", unit="arm"):
            flat = [row | row["arms"][arm] for row in own]
            kinds = sorted({row["kind"] for row in flat})
            by_kind = {kind: numbers([row for row in flat if row["kind"] == kind], plain) for kind in kinds}
            found.append({"arm": arm + suffix, "protocol": protocol} | numbers(flat, metrics) | {"by_kind": by_kind})
    return found


def describe(name: str, pictures: int, of: int, thresholds: dict[str, float], args: argparse.Namespace) -> dict:
    """What was measured, on what, by which command and code."""
    return {
        "benchmark": name,
        "model": str(args.model),
        "data": str(args.data),
        "split": args.split,
        "pictures": pictures,
        "pictures_of_split": of,
        "thresholds": thresholds,
        "command": f"python -m eval.{name} {shlex.join(sys.argv[1:])}",
        "commit": head_commit(),
        "machine": machine(),
    }


def markdown(title: str, summary: dict, headings: dict[str, str], published: tuple[Published, ...] = ()) -> str:
    """The report: our rows with intervals, then the published ones of the split, percent, each with its protocol."""
    head = ["system", "protocol", *headings.values(), "n", "source"]
    lines = [f"# {title}, {summary['split']}", "", f"`{summary['command']}`", ""]
    lines += [f"Commit {summary['commit']}; {summary['machine']}; mask thresholds {summary['thresholds']}.", ""]
    if summary["pictures"] < summary["pictures_of_split"]:
        part = f"{summary['pictures']} of {summary['pictures_of_split']} pictures"
        lines += [f"**Only the first {part}: compares with nothing below.**", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in summary["results"]:
        cells = [f"**{summary['model']}**, {row['arm']}", PROTOCOLS[row["protocol"]]]
        cells += [_percent(row[name], row.get(f"{name}_95")) for name in headings]
        lines.append("| " + " | ".join([*cells, str(row["n"]), "this run"]) + " |")
    for theirs in published:
        own = theirs.numbers.get(summary["split"])
        if own is not None:
            source = f"{theirs.source}; {theirs.note}" if theirs.note else theirs.source
            cells = [theirs.system, PROTOCOLS[theirs.protocol]]
            cells += [f"{own[name]:.1f}" if name in own else "–" for name in headings]
            lines.append("| " + " | ".join([*cells, "–", source]) + " |")
    lines += ["", "Percent; brackets: 95 % bootstrap interval over pictures. Rows of another protocol do not compare."]
    return "\n".join(lines) + "\n"


def _percent(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")
