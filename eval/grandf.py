"""GranD_f: descriptions whose things are grounded, scored by their masks alone.

    python -m eval.grandf --model DIR --data runs/grandf --split val

Predicted and true masks of a description are matched by IoU; a miss and an invention are slots of their own. METEOR,
CIDEr and the text gate of GLaMM's recall are not computed; what a description names that is not there is
`eval.hallucination`'s.
"""

from eval.benchmark import Benchmark, Reply, as_it_is, parsed, parser, run
from eval.benchmark_report import Metric
from eval.metrics import MaskCounts, ciou, giou, match_counts
from popen.data.schema import Question, Sample
from popen.errors import one_line_errors

LEAST = 0.5  # IoU from which a thing counts as found


def score(sample: Sample, question: Question, reply: Reply) -> dict:
    """Slots of the matching, and how many of them are things found."""
    valid = ~sample.decoded_ignore()
    slots = match_counts(reply.masks, question.decoded_masks(*valid.shape), valid)
    found = sum(s.union > 0 and s.intersection >= LEAST * s.union for s in slots)
    return {"counts": [[s.intersection, s.union] for s in slots], "found": found}


def slots_of(rows: list[dict]) -> list[MaskCounts]:
    """Back from JSON."""
    return [MaskCounts(*slot) for row in rows for slot in row["counts"]]


def share_found(rows: list[dict], of: str) -> float | None:
    """Things found among all `targets` or all `predicted`; None where there are none."""
    count = sum(row[of] for row in rows)
    return sum(row["found"] for row in rows) / count if count else None


METRICS = {
    "giou": Metric("gIoU of slots", lambda rows: giou(slots_of(rows))),
    "ciou": Metric("cIoU of slots", lambda rows: ciou(slots_of(rows))),
    "recall": Metric(f"recall at IoU {LEAST}", lambda r: share_found(r, "targets"), lambda row: row["targets"] > 0),
    "precision": Metric(
        f"precision at IoU {LEAST}", lambda r: share_found(r, "predicted"), lambda row: row["predicted"] > 0
    ),
}


def main() -> None:
    args = parsed(parser("grandf", __doc__, max_new_tokens=512))
    run(Benchmark("grandf", "GranD_f", score, METRICS, as_it_is, "grandf"), args)


if __name__ == "__main__":
    with one_line_errors("eval.grandf"):
        main()
