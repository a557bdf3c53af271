"""RefCOCO, RefCOCO+ and RefCOCOg: cIoU as LISA computes it, beside it gIoU and P@0.5 … P@0.9.

    python -m eval.refcoco --model DIR --data runs/refcoco --dataset refcoco --split testA
    accelerate launch -m eval.refcoco --model DIR --data runs/refcocog --dataset refcocog --split test

Every sentence of every expression is one mask, as in ReasonSeg.
"""

from eval.benchmark import Benchmark, parsed, parser, run, with_one_mask
from eval.benchmark_report import Metric
from eval.metrics import precision_at
from eval.published_rows import read_published
from eval.reasonseg import METRICS, counts_of, score
from popen.errors import one_line_errors

TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg", "refclef": "RefCLEF"}
PRECISIONS = {
    f"p@{x}": Metric(f"P@{x}", lambda rows, x=x: precision_at(counts_of(rows), x), interval=False)
    for x in (0.5, 0.6, 0.7, 0.8, 0.9)
}


def main() -> None:
    options = parser("refcoco", __doc__)
    options.add_argument("--dataset", required=True, choices=sorted(TITLES), help="which of them --data holds")
    args = parsed(options)
    metrics = {name: METRICS[name] for name in ("ciou", "giou", "ciou_strict", "giou_strict")} | PRECISIONS
    published = tuple(row for row in read_published("refcoco") if row.dataset == args.dataset)
    run(Benchmark("refcoco", TITLES[args.dataset], score, metrics, with_one_mask, args.dataset, published), args)


if __name__ == "__main__":
    with one_line_errors("eval.refcoco"):
        main()
