"""gRefCOCO as GSVA scores it: gIoU, cIoU, N-acc and T-acc over expressions of none, one or several things.

    python -m eval.grefcoco --model DIR --data runs/grefcoco --split val

An answer without a mask denies that there is anything. Teacher-forced, only expressions with targets are scored: the
true words would give the others away, so there is no N-acc and T-acc is given.
"""

from eval.benchmark import Benchmark, Reply, parsed, parser, run, with_targets
from eval.benchmark_report import Metric
from eval.grefcoco_metrics import Referral, grefcoco_ciou, grefcoco_giou, n_acc, referral, t_acc
from eval.published_rows import read_published
from popen.data.schema import Question, Sample
from popen.errors import one_line_errors


def score(sample: Sample, question: Question, reply: Reply) -> dict:
    """The fields of a Referral."""
    valid = ~sample.decoded_ignore()
    return vars(referral(reply.masks, question.decoded_masks(*valid.shape), valid))


def referrals(rows: list[dict]) -> list[Referral]:
    """Back from JSON."""
    return [Referral(**{name: row[name] for name in Referral.__dataclass_fields__}) for row in rows]


METRICS = {
    "giou": Metric("gIoU", lambda rows: grefcoco_giou(referrals(rows))),
    "ciou": Metric("cIoU", lambda rows: grefcoco_ciou(referrals(rows))),
    "n_acc": Metric("N-acc", lambda rows: n_acc(referrals(rows)), about=lambda row: row["no_target"]),
    "t_acc": Metric("T-acc", lambda rows: t_acc(referrals(rows)), about=lambda row: not row["no_target"]),
}


def main() -> None:
    args = parsed(parser("grefcoco", __doc__))
    published = tuple(read_published("grefcoco"))
    run(Benchmark("grefcoco", "gRefCOCO", score, METRICS, with_targets, "grefcoco", published), args)


if __name__ == "__main__":
    with one_line_errors("eval.grefcoco"):
        main()
