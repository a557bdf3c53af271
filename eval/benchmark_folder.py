"""Where a benchmark's results lie: a folder of its own for each data set, split and model, whole or refused.

OUT holds `rows_<protocol>.jsonl`, written as soon as the protocol is done, then `summary.json` and `report.md`.
"""

from pathlib import Path

from eval.rows import write_rows
from popen.data.safe_io import DataError, read_json, storage_error, write_json

SUMMARY, REPORT = "summary.json", "report.md"
IDENTITY = ("benchmark", "model", "data", "split")


def default_folder(benchmark: str, data: str, split: str, model: str) -> Path:
    """`runs/eval/<benchmark>/<data set>/<split>/<model>`, data set and model by the last part of their names."""
    return Path("runs/eval") / benchmark / Path(data).resolve().name / split / Path(model).resolve().name


def check_free(out: Path, identity: dict[str, str]) -> None:
    """Check that no results of something else lie in `out`; those of the same may be replaced.

    Args:
        identity: benchmark, model, data and split.
    Raises:
        DataError: names what is there.
    """
    if not (out / SUMMARY).is_file():
        return
    there = read_json(out / SUMMARY)
    for name in IDENTITY:
        found = there.get(name) if isinstance(there, dict) else None
        if found != identity[name]:
            raise DataError(
                f"{out}: holds results of {name} {found}, not {identity[name]}; give another --out or move them away"
            )


def settle_rows(out: Path, protocol: str, rows: list[dict]) -> None:
    """Writes `rows_<protocol>.jsonl` before the next protocol begins; an earlier summary no longer fits and goes.

    Raises:
        StorageError: the disk refused.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, REPORT):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, out, "evaluate again") from error
    write_rows(out / f"rows_{protocol}.jsonl", rows)


def write_report(out: Path, summary: dict, text: str) -> None:
    """`summary.json` and `report.md`, which is printed; StorageError where the disk refuses."""
    write_json(out / SUMMARY, summary)
    try:
        (out / REPORT).write_text(text, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, out, "the rows are written; evaluate again") from error
    print(text)
