"""Arms of one evaluation beside each other: every arm against a control that answered the same questions.

    python -m eval.arm_tables --rows runs/eval/popen/rows.jsonl --control single --out docs/results/popen_test

Writes OUT.json and OUT.svg and prints the table in Markdown; intervals are 95 % over pictures, differences are paired.
"""

import argparse
from pathlib import Path

from eval.ablation_tables import RATIOS, compare, draws, figure, sums_of
from eval.rows import read_rows
from popen.data.safe_io import DataError, write_json
from popen.errors import one_line_errors


def tabulate(file: Path, control: str) -> dict:
    """Every arm's numbers and their differences to the control's, the control first.

    Raises:
        DataError: the file has no rows, an id twice, or no arm of the control's name.
    """
    rows = read_rows(file)
    names = list(rows[0]["arms"])
    if control not in names:
        raise DataError(f"{file}: no arm {control!r}; there: {', '.join(names)}")
    found = {name: sums_of([[row | row["arms"][name] for row in rows]]) for name in names}
    resampled = draws(*found[control].union.shape)
    ordered = [control, *(name for name in names if name != control)]
    return {
        name: {"n": len(rows)} | {number: compare(found[name], found[control], number, resampled) for number in RATIOS}
        for name in ordered
    }


def markdown(table: dict) -> str:
    """One row per arm; points and percent."""
    head = [
        "arm",
        *(f"{number}, %" for number in RATIOS),
        "cIoU − control",
        "hard cIoU − control",
        "CHAIR_i − control",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in table.items():
        low, high = row["ciou"]["value_95"]
        cells = [name, f"{100 * row['ciou']['value']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"]
        cells += [f"{100 * row[number]['value']:.2f}" for number in list(RATIOS)[1:]]
        for number in ("ciou", "hard_ciou", "chair_i"):
            low, high = row[number]["difference_95"]
            cells.append(f"{100 * row[number]['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", required=True, type=Path, help="rows.jsonl of eval.segmentation")
    parser.add_argument("--control", default="single")
    parser.add_argument("--out", type=Path, help="also write OUT.json and OUT.svg")
    args = parser.parse_args()
    table = tabulate(args.rows, args.control)
    if args.out is not None:
        write_json(args.out.with_suffix(".json"), table)
        args.out.with_suffix(".svg").write_text(figure(table, args.control))
    print(markdown(table))


if __name__ == "__main__":
    with one_line_errors("eval.arm_tables"):
        main()
