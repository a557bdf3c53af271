"""The claims of this project: one row of `docs/results/claims.json` each, written by the script that measured it.

    python -m eval.claims                # the table, and which rows are older than the code they measure

A row of the same area and wording is replaced when it is measured again. A bar that is missed stays, with met = false.
"""

import argparse
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from popen.data.safe_io import DataError, read_json, write_json
from popen.errors import one_line_errors

CLAIMS = Path("docs/results/claims.json")
MEASURED = ("popen", "recipes", "data_tools", "eval")


@dataclass(frozen=True)
class Claim:
    """What was measured: `value` in [low, high] over n items, against `bar` (None where there is only a number)."""

    area: str
    what: str
    bar: float | None
    value: float
    low: float | None
    high: float | None
    n: int
    seeds: tuple[int, ...]
    baseline: str
    command: str
    commit: str
    machine: str
    met: bool | None


def claim(*, at_least: float | None = None, at_most: float | None = None, **row) -> Claim:
    """A claim with its commit, its machine, and whether the bar is met.

    Raises:
        ValueError: both bars are given.
    """
    if at_least is not None and at_most is not None:
        raise ValueError(f"{row['what']}: give one bar, at_least or at_most")
    bar = at_most if at_least is None else at_least
    met = None if bar is None else bool(row["value"] >= bar if at_most is None else row["value"] <= bar)
    return Claim(bar=bar, met=met, commit=head_commit(), machine=machine(), **row)


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """The rows of the file; none where there is no file.

    Raises:
        DataError: a row has other fields than `Claim`.
    """
    if not path.exists():
        return []
    wanted = {field.name for field in fields(Claim)}
    rows = read_json(path)
    for number, row in enumerate(rows):
        if set(row) != wanted:
            raise DataError(
                f"{path}: row {number} has fields {sorted(set(row) ^ wanted)} too many or too few; correct it"
            )
    return [Claim(**(row | {"seeds": tuple(row["seeds"])})) for row in rows]


def record(claims: Iterable[Claim], path: Path = CLAIMS) -> None:
    """Adds rows, each in the place of an earlier one of the same area and wording."""
    rows = {(c.area, c.what): c for c in read_claims(path)}
    rows |= {(c.area, c.what): c for c in claims}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [asdict(row) for row in rows.values()])


def table(claims: list[Claim]) -> str:
    """Markdown, a line per claim."""
    lines = ["| area | what | bar | value [95 %] | n | met |", "|---|---|---|---|---|---|"]
    for c in claims:
        interval = "" if c.low is None else f" [{c.low:.4g}, {c.high:.4g}]"
        met = {True: "yes", False: "**no**", None: "–"}[c.met]
        bar = "–" if c.bar is None else f"{c.bar:g}"
        lines.append(f"| {c.area} | {c.what} | {bar} | {c.value:.4g}{interval} | {c.n} | {met} |")
    return "\n".join(lines)


def stale(claims: list[Claim]) -> list[Claim]:
    """Claims whose code has changed since their commit, or whose commit is not known here."""
    return [c for c in claims if _git("diff", "--quiet", c.commit, "HEAD", "--", *MEASURED).returncode != 0]


def head_commit() -> str:
    """The commit that is checked out, marked where the measured code has uncommitted changes."""
    head = _git("rev-parse", "--short=12", "HEAD").stdout.strip() or "unknown"
    return head + ("-dirty" if _git("diff", "--quiet", "HEAD", "--", *MEASURED).returncode else "")


def machine() -> str:
    """Processor and number of cores."""
    import os

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def _git(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    claims = read_claims()
    print(table(claims))
    for old in stale(claims):
        print(f"older than the code: {old.area}: {old.what} (commit {old.commit}); {old.command}")


if __name__ == "__main__":
    with one_line_errors("eval.claims"):
        main()
