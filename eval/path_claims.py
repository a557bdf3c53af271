"""Measures a finished run of `recipes/path.py` against the bars of the whole path and records them as claims.

    python -m eval.path_claims --run runs/path --command "python recipes/path.py --config recipes/demo.yaml"

Differences are paired: both arms answered the same questions, and pictures are resampled together.
"""

import argparse
from pathlib import Path

from eval.claims import claim, record, table
from eval.metrics import MaskCounts, bootstrap_interval, ciou
from eval.rows import read_rows
from popen.data.safe_io import DataError, read_json
from popen.errors import one_line_errors
from popen.preference.hallucination import Mentions, chair_i

LEAST_DROP = 20.0  # percent of CHAIR_i
LEAST_GAIN = 1.0  # points of cIoU
DEMO_MINUTES, DEMO_GIB = 15.0, 6.0


def paired(first: list[dict], second: list[dict]) -> list[list[tuple[dict, dict]]]:
    """Rows of two arms side by side, grouped by picture.

    Raises:
        DataError: they did not answer the same questions.
    """
    other = {row["id"]: row for row in second}
    if {row["id"] for row in first} != set(other):
        raise DataError("two arms answered different questions; evaluate both on the same split")
    pictures: dict[str, list[tuple[dict, dict]]] = {}
    for row in first:
        pictures.setdefault(row["picture"], []).append((row, other[row["id"]]))
    return list(pictures.values())


def ciou_gain(pairs: list[list[tuple[dict, dict]]], first: str, second: str) -> float:
    """cIoU of the first arm minus that of the second, in points."""
    rows = [pair for group in pairs for pair in group]
    a, b = (
        [MaskCounts(*c) for row in rows for c in row[i]["arms"][arm]["counts"]] for i, arm in ((0, first), (1, second))
    )
    return 100 * (ciou(a) - ciou(b))


def chair_drop(pairs: list[list[tuple[dict, dict]]]) -> float:
    """By how many percent CHAIR_i of the first arm lies below the second's; 0 where the second names nothing wrong."""
    rows = [pair for group in pairs for pair in group]
    said = [[row[i]["arms"]["single"] for row in rows] for i in (0, 1)]
    a, b = (chair_i([Mentions(arm["named"], arm["hallucinated"]) for arm in arms]) for arms in said)
    return 100 * (1 - a / b) if b else 0.0


def measure(run: Path, command: str, seed: int) -> list:
    """The claims of a finished run."""
    arms = {name: read_rows(run / "eval" / name / "rows.jsonl") for name in ("base", "continued_sft", "popen")}
    base = read_json(run / "eval" / "base" / "summary.json")["arms"]["single"]
    common = {"area": "popen-tiny", "n": base["n"], "seeds": (seed,), "command": command}
    made = [
        claim(
            what="base, cIoU in free generation", at_least=0.75, value=base["ciou"], low=base["ciou_95"][0],
            high=base["ciou_95"][1], baseline="none", **common,
        )
    ]  # fmt: skip
    for other, name in (("base", "base"), ("continued_sft", "same-budget continued SFT")):
        pairs = paired(arms["popen"], arms[other])
        low, high = bootstrap_interval(pairs, lambda g: ciou_gain(g, "single", "single"), seed)
        made.append(
            claim(
                what=f"POPEN single pass − {name}, points of cIoU", at_least=0.0,
                value=ciou_gain(pairs, "single", "single"), low=low, high=high, baseline=name, **common,
            )
        )  # fmt: skip
        low, high = bootstrap_interval(pairs, chair_drop, seed)
        made.append(
            claim(
                what=f"CHAIR_i of POPEN below {name}, percent", at_least=LEAST_DROP, value=chair_drop(pairs),
                low=low, high=high, baseline=name, **common,
            )
        )  # fmt: skip
    pairs = paired(arms["popen"], arms["popen"])
    for arm in [arm for arm in arms["popen"][0]["arms"] if arm != "single"]:
        low, high = bootstrap_interval(pairs, lambda g, arm=arm: ciou_gain(g, arm, "single"), seed)
        made.append(
            claim(
                what=f"POPEN {arm} − single pass, points of cIoU",
                at_least=LEAST_GAIN if arm == "ensemble" else None,
                value=ciou_gain(pairs, arm, "single"), low=low, high=high, baseline="POPEN single pass", **common,
            )
        )  # fmt: skip
    return made


def cost(run: Path, command: str, seed: int) -> list:
    """The claims of `make demo`: minutes after install and the memory of its largest step."""
    spent = read_json(run / "cost.json")
    common = {
        "area": "make demo", "low": None, "high": None, "n": 1, "seeds": (seed,), "baseline": "none",
        "command": command,
    }  # fmt: skip
    return [
        claim(what="minutes after install", at_most=DEMO_MINUTES, value=spent["seconds"] / 60, **common),
        claim(what="GiB of the largest step", at_most=DEMO_GIB, value=spent["peak_gib"], **common),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder that recipes/path.py filled")
    parser.add_argument("--command", required=True, help="the command that filled it, for the record")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true", help="record what the run cost instead: for `make demo`")
    args = parser.parse_args()
    claims = (cost if args.cost else measure)(Path(args.run), args.command, args.seed)
    record(claims)
    print(table(claims))


if __name__ == "__main__":
    with one_line_errors("eval.path_claims"):
        main()
