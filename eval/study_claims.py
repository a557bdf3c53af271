"""Records a table of a study as claims: what each arm gains over the control, in points of cIoU, against a bar.

    python -m eval.study_claims --table docs/results/popen_test.json --control single --area "scenes-test" \\
        --bar ensemble 3 --command "python -m eval.arm_tables --rows runs/eval_final/rows.jsonl"

Tables are those that eval.arm_tables and eval.ablation_tables wrote.
"""

import argparse
from pathlib import Path

from eval.claims import Claim, claim, record, table
from popen.data.safe_io import DataError, read_json
from popen.errors import one_line_errors


def gains(rows: dict, control: str, area: str, command: str, bars: dict[str, float]) -> list[Claim]:
    """One claim per arm beside the control; a study of several seeds counts them from 0.

    Raises:
        DataError: the control, or an arm with a bar, is not in the table.
    """
    missing = [name for name in (control, *bars) if name not in rows]
    if missing:
        raise DataError(f"no arm {missing[0]!r} in the table; there: {', '.join(rows)}")
    made = []
    for name, row in rows.items():
        if name == control:
            continue
        value, (low, high) = 100 * row["ciou"]["difference"], (100 * end for end in row["ciou"]["difference_95"])
        made.append(
            claim(
                area=area, what=f"{name} − {control}, points of cIoU", at_least=bars.get(name), value=value, low=low,
                high=high, n=row["n"], seeds=tuple(range(row.get("seeds", 1))), baseline=control, command=command,
            )
        )  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, type=Path)
    parser.add_argument("--control", required=True)
    parser.add_argument("--area", required=True)
    parser.add_argument("--command", required=True, help="what made the table, for the record")
    parser.add_argument("--bar", nargs=2, action="append", default=[], metavar=("ARM", "POINTS"))
    args = parser.parse_args()
    bars = {arm: float(points) for arm, points in args.bar}
    made = gains(read_json(args.table), args.control, args.area, args.command, bars)
    record(made)
    print(table(made))


if __name__ == "__main__":
    with one_line_errors("eval.study_claims"):
        main()
