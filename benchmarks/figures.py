"""A figure of the benchmarks: a ratio against its bar, as JSON and as a row of a Markdown table.

python -m benchmarks.figures docs/results/bench     # one table of all files there, as table.md beside them
"""

import argparse
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch

from benchmarks.turns import Spent, ratio
from eval.claims import head_commit, machine
from popen.data.safe_io import DataError, read_json, write_bytes, write_json
from popen.errors import one_line_errors

HEADING = "| what | ratio [quartiles] | in processor time | bar | met | limit | turns |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Figure:
    """One ratio, `median` in quartiles [low, high] over turns, and the median seconds of both sides.

    Args:
        cpu: the same ratio in processor seconds, None, or absent from the JSON, where that was not measured.
        at_least, at_most: the bar, one of them or none. limit: the physical limit, in words.
        notes: further numbers, as FLOPs or equal answers.
    """

    what: str
    median: float
    low: float
    high: float
    turns: int
    cpu: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    limit: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most


def figure(what: str, taken: dict[str, list[Spent]], over: str, under: str, **more) -> Figure:
    """The ratio of what two sides take, `over` / `under`."""
    found = ratio(taken[over], taken[under])
    cpu = None if torch.cuda.is_available() else found.cpu
    both = {name: median(own.wall for own in taken[name]) for name in (over, under)}
    return Figure(what, found.median, found.low, found.high, found.turns, cpu, seconds=both, **more)


def row(shown: Figure) -> str:
    """One line of the table."""
    bar = "–" if shown.met is None else f"≥ {shown.at_least:g}" if shown.at_most is None else f"≤ {shown.at_most:g}"
    met = {True: "yes", False: "**no**", None: "–"}[shown.met]
    spread = f"{shown.median:.3g} [{shown.low:.3g}, {shown.high:.3g}]"
    cpu = "–" if shown.cpu is None else f"{shown.cpu:.3g}"
    return f"| {shown.what} | {spread} | {cpu} | {bar} | {met} | {shown.limit or '–'} | {shown.turns} |"


def parser(description: str, turns: int) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--out", required=True, help="JSON to write")
    made.add_argument("--toy", action="store_true", help="smallest sizes: shows that it runs, the ratios mean nothing")
    made.add_argument("--turns", type=int, default=turns, help="turns of each side")
    made.add_argument("--seed", type=int, default=0)
    return made


def report(args: argparse.Namespace, figures: list[Figure], **facts) -> None:
    """Prints the table and writes it with commit, machine, load and further facts to `args.out`."""
    shown = [asdict(own) | {"met": own.met} for own in figures]
    where = {"commit": head_commit(), "machine": machine(), "threads": torch.get_num_threads(), "load": load()}
    write_json(args.out, where | {"toy": args.toy, "seed": args.seed} | facts | {"figures": shown})
    if figures:
        print(HEADING, *map(row, figures), sep="\n")


def load() -> float | None:
    """How many processes wanted a core over the last minute, where the system says; many make a ratio rough."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def table(folder: Path) -> str:
    """Markdown of all figures in a folder's JSON files.

    Raises:
        DataError: no such file there, or one that is no benchmark's.
    """
    lines = []
    for file in sorted(folder.glob("*.json")):
        found = read_json(file)
        if "figures" not in found:
            raise DataError(f"{file}: has no figures; delete it or write it again with its benchmark")
        own = [Figure(**{k: v for k, v in entry.items() if k != "met"}) for entry in found["figures"]]
        if not own:
            continue  # growth has curves
        lines += [f"\n`{file.stem}`: {found['machine']}, load {found['load']}, commit {found['commit']}\n", HEADING]
        lines += map(row, own)
    if not lines:
        raise DataError(f"{folder}: no JSON of a benchmark; run make bench first")
    return "\n".join(lines).lstrip() + "\n"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("folder", type=Path, help="where the benchmarks wrote their JSON")
    folder = made.parse_args().folder
    text = table(folder)
    write_bytes(folder / "table.md", text.encode())
    print(text, end="")


if __name__ == "__main__":
    with one_line_errors("benchmarks.figures"):
        main()
