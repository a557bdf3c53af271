"""ReasonSeg in LISA's numbers: gIoU and cIoU, teacher-forced as LISA does and in free generation.

    python -m eval.reasonseg --model DIR --data runs/reasonseg --split val
    accelerate launch -m eval.reasonseg --model DIR --data runs/reasonseg --split test

A question is one mask: what an answer shows, of however many masks, is held together against what it should show. In
the strict numbers an answer of another number of masks than asked for has found nothing.
"""

from dataclasses import replace

from eval.benchmark import Benchmark, Reply, parsed, parser, run, with_one_mask
from eval.benchmark_report import Metric
from eval.lisa_metrics import lisa_ciou, lisa_giou, mask_counts
from eval.metrics import MaskCounts
from eval.published_rows import read_published
from popen.data.schema import Question, Sample
from popen.errors import one_line_errors


def score(sample: Sample, question: Question, reply: Reply) -> dict:
    """Pixels in both and in either, masks of an answer together."""
    valid = ~sample.decoded_ignore()
    counts = mask_counts(reply.masks.any(0), question.decoded_masks(*valid.shape).any(0), valid)
    return {"counts": [counts.intersection, counts.union]}


def counts_of(rows: list[dict]) -> list[MaskCounts]:
    """Back from JSON."""
    return [MaskCounts(*row["counts"]) for row in rows]


def strict_counts_of(rows: list[dict]) -> list[MaskCounts]:
    """The same, and nothing found where an answer has more or fewer masks than there are targets (ours)."""
    right = (row["predicted"] == row["targets"] for row in rows)
    return [
        counts if told else replace(counts, intersection=0)
        for counts, told in zip(counts_of(rows), right, strict=True)
    ]


METRICS = {
    "giou": Metric("gIoU", lambda rows: lisa_giou(counts_of(rows))),
    "ciou": Metric("cIoU", lambda rows: lisa_ciou(counts_of(rows))),
    "giou_strict": Metric("gIoU, strict", lambda rows: lisa_giou(strict_counts_of(rows))),
    "ciou_strict": Metric("cIoU, strict", lambda rows: lisa_ciou(strict_counts_of(rows))),
}


def main() -> None:
    args = parsed(parser("reasonseg", __doc__))
    published = tuple(read_published("reasonseg"))
    run(Benchmark("reasonseg", "ReasonSeg", score, METRICS, with_one_mask, "reasonseg", published), args)


if __name__ == "__main__":
    with one_line_errors("eval.reasonseg"):
        main()
