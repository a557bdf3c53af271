"""RefCOCO, RefCOCO+ and RefCOCOg: cIoU as LISA computes it, beside it gIoU and P@0.5 … P@0.9.

    python -m eval.refcoco --model DIR --data runs/refcoco --dataset refcoco --split testA
    accelerate launch -m eval.refcoco --model DIR --data runs/refcocog --dataset refcocog --split test

Every sentence of every expression is one mask, as in ReasonSeg. Published rows are on the splits that papers use
(unc; umd for RefCOCOg) and stand beside no others.
"""

from eval.benchmark import Benchmark, parsed, parser, run, with_one_mask
from eval.benchmark_report import Metric
from eval.metrics import precision_at
from eval.published_rows import read_published
from eval.reasonseg import METRICS, counts_of, score
from popen.data.refer import SPLIT_BY, source_of
from popen.data.safe_io import DataError
from popen.errors import one_line_errors

TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg", "refclef": "RefCLEF"}
PRECISIONS = {
    f"p@{x}": Metric(f"P@{x}", lambda rows, x=x: precision_at(counts_of(rows), x), interval=False)
    for x in (0.5, 0.6, 0.7, 0.8, 0.9)
}


def main() -> None:
    options = parser("refcoco", __doc__)
    options.add_argument("--dataset", required=True, choices=sorted(TITLES), help="which of them --data holds")
    options.add_argument("--split-by", help="as given to data_tools/convert_refer.py; the first way there by default")
    args = parsed(options)
    usual = SPLIT_BY[args.dataset][0]
    split_by = args.split_by or usual
    if split_by not in SPLIT_BY[args.dataset]:
        raise DataError(f"--split-by {split_by}: {args.dataset} is split by {' or '.join(SPLIT_BY[args.dataset])}")
    metrics = {name: METRICS[name] for name in ("ciou", "giou", "ciou_strict", "giou_strict")} | PRECISIONS
    # what is published is on the usual splits: `val` of another way holds other sentences
    published = tuple(row for row in read_published("refcoco") if row.dataset == args.dataset and split_by == usual)
    title = TITLES[args.dataset] if split_by == usual else f"{TITLES[args.dataset]}, split by {split_by}"
    run(Benchmark("refcoco", title, score, metrics, with_one_mask, source_of(args.dataset, split_by), published), args)


if __name__ == "__main__":
    with one_line_errors("eval.refcoco"):
        main()
