"""MUSE: several targets per answer, scored as PixelLM's released script does and as it should.

    python -m eval.muse --model DIR --data runs/muse --split val
    python -m eval.muse --model DIR --data runs/muse --gate-url URL --gate-model NAME --gate-least N

With a gate, pairs whose words do not fit what they outline are also scored as misses; see `eval.muse_gate`. An item of
the released script is a record of MUSE's file, whose number stands in the ids of its questions.
"""

import argparse

import torch
from tqdm.auto import tqdm

from eval.benchmark import Benchmark, Reply, answer_all, as_it_is, asked, load, parsed, parser
from eval.benchmark_folder import write_report
from eval.benchmark_report import Metric, describe, markdown, results
from eval.metrics import MaskCounts
from eval.muse_gate import described, gated, judge
from eval.muse_metrics import (
    MuseCounts,
    corrected_ciou,
    corrected_giou,
    match,
    matching_points,
    muse_counts,
    released_ciou,
    released_giou,
)
from eval.rows import question_ids
from popen.data.safe_io import DataError
from popen.data.schema import Question, Sample
from popen.distributed.ranks import launched
from popen.errors import one_line_errors
from popen.preference.endpoint import Endpoint, EndpointChat

AT_A_TIME = 256  # answers judged between two steps of the progress bar


def score(sample: Sample, question: Question, reply: Reply) -> dict:
    """Counts of the matching, and for a judge the question with the answer whose masks are put into words."""
    valid = ~torch.from_numpy(sample.decoded_ignore())
    truth = torch.from_numpy(question.decoded_masks(*valid.shape))
    pairs = match(reply.logits, truth, matching_points(question.id))
    counts = muse_counts(reply.logits, truth, valid, pairs)
    matched = dict(pairs)
    words = [question.phrases[matched[p]] if p in matched else None for p in range(len(reply.logits))]
    return {
        "pairs": [[pair.intersection, pair.union] for pair in counts.pairs],
        "missed": counts.missed,
        "surplus": counts.surplus,
        "surplus_band": counts.surplus_band,
        "paired": [p for p, _ in pairs],
        "asked": question.question,
        "described": described(reply.text, words),
    }


def counts_of(row: dict) -> MuseCounts:
    """Back from JSON."""
    pairs = tuple(MaskCounts(*pair) for pair in row["pairs"])
    return MuseCounts(pairs, *(tuple(row[name]) for name in ("missed", "surplus", "surplus_band")))


def item_of(question_id: str) -> str:
    """The record that a question is of: "muse/val/000000000009/17" of "muse/val/000000000009/17/0".

    Raises:
        DataError: the id names no record.
    """
    parts = question_id.split("/")
    if len(parts) != len(("muse", "split", "picture", "record", "number")):
        raise DataError(f"question {question_id!r} does not say its record; convert MUSE again with convert_muse.py")
    return "/".join(parts[:-1])


def items_of(rows: list[dict]) -> list[list[MuseCounts]]:
    """The questions of each item."""
    items: dict[str, list[MuseCounts]] = {}
    for row in rows:
        items.setdefault(item_of(row["id"]), []).append(counts_of(row))
    return list(items.values())


def has_masks(row: dict) -> bool:
    """Whether there is anything to score: a mask, predicted or true."""
    return row["predicted"] + row["targets"] > 0


METRICS = {
    "released_giou": Metric("gIoU as released", lambda rows: released_giou(items_of(rows)), has_masks),
    "released_ciou": Metric("cIoU as released", lambda rows: released_ciou(items_of(rows)), has_masks),
    "giou": Metric("gIoU corrected", lambda rows: corrected_giou([counts_of(r) for r in rows]), has_masks),
    "ciou": Metric("cIoU corrected", lambda rows: corrected_ciou([counts_of(r) for r in rows]), has_masks),
}


def gated_rows(rows: list[dict], chat: EndpointChat, least: int) -> tuple[list[dict], int]:
    """The rows with the intersections that the judge lets stand, and how many replies could not be read.

    A reply that cannot be read leaves its answer as it is.
    """
    places = [(row, arm) for row in rows for arm in row["arms"] if row["arms"][arm]["pairs"]]
    asked = [(r["arms"][a]["asked"], r["arms"][a]["described"], r["arms"][a]["predicted"]) for r, a in places]
    scores = []
    for start in tqdm(range(0, len(asked), AT_A_TIME), desc="text gate", unit=f"{AT_A_TIME} answers"):
        scores += judge(asked[start : start + AT_A_TIME], chat.replies)
    verdicts = {(row["id"], arm): own for (row, arm), own in zip(places, scores, strict=True)}
    found = []
    for row in rows:
        arms = {}
        for arm, said in row["arms"].items():
            own = verdicts.get((row["id"], arm))
            if own is not None:
                kept = gated(counts_of(said), [own[p] for p in said["paired"]], least)
                said = said | {"pairs": [[pair.intersection, pair.union] for pair in kept.pairs]}
            arms[arm] = said
        found.append(row | {"arms": arms})
    return found, sum(own is None for own in scores)


def main() -> None:
    args = options()
    benchmark = Benchmark("muse", "MUSE", score, METRICS, as_it_is, "muse")
    with launched() as ranks:
        loaded = load(args, ranks, benchmark)
        for name in question_ids(loaded.dataset, loaded.pictures):
            item_of(name)
        rows = answer_all(benchmark, loaded, ranks, args)
        if ranks.rank > 0:
            return
        summary = describe(benchmark.name, loaded.pictures, len(loaded.dataset), loaded.thresholds, args)
        summary |= {"asked": asked(benchmark, args), "results": results(rows, METRICS)}
        headings = {name: metric.heading for name, metric in METRICS.items()}
        write_report(args.out, summary, markdown(benchmark.title, summary, headings))
        if args.gate_url is None:
            return
        # what was generated for hours is written already, should the endpoint be gone
        chat = EndpointChat(Endpoint(args.gate_url, args.gate_model, pictures=False), args.out / "gate")
        judged = {protocol: gated_rows(own, chat, args.gate_least) for protocol, own in rows.items()}
        suffix = f", text gate at {args.gate_least} of {args.gate_model}"
        summary["results"] += results({protocol: own for protocol, (own, _) in judged.items()}, METRICS, suffix)
        summary["gate_unreadable"] = {protocol: count for protocol, (_, count) in judged.items()}
        write_report(args.out, summary, markdown(benchmark.title, summary, headings))


def options() -> argparse.Namespace:
    made = parser("muse", __doc__, max_new_tokens=512)
    made.add_argument("--gate-url", help="OpenAI-compatible endpoint of a judge of words; none by default")
    made.add_argument("--gate-model", help="name of the model there")
    made.add_argument("--gate-least", type=int, help="least score, 1..10, that lets a pair stand; none is known")
    args = parsed(made)
    given = [value is not None for value in (args.gate_url, args.gate_model, args.gate_least)]
    if any(given) and not all(given):
        made.error("--gate-url, --gate-model and --gate-least belong together; give all three or none")
    return args


if __name__ == "__main__":
    with one_line_errors("eval.muse"):
        main()
