"""What a model says that is not there: CHAIR, wrong attributes and counts, answers to the unanswerable, POPE probes.

    python -m eval.hallucination --model DIR --data runs/refcoco --split val

Everything in free generation: forced words hallucinate nothing. The data set's `objects` say what is in a picture;
where they are only a part of it, as in MUSE and GranD_f, a true name would count as hallucinated: it is refused.
"""

import argparse
from functools import partial

from eval.benchmark import EVERY, FREE, Loaded, load, over_split, parsed, parser
from eval.benchmark_folder import settle_rows, write_report
from eval.benchmark_report import describe, markdown
from eval.known_objects import unknown_objects
from eval.metrics import bootstrap_interval
from eval.pope import NEGATIVES, Probe, ask, pooled, probes
from eval.rows import question_ids
from eval.segmentation import score, summarise
from popen.data.safe_io import DataError
from popen.distributed.ranks import Ranks, launched
from popen.errors import one_line_errors
from popen.lvlm.out_of_memory import questions_at_a_time
from popen.preference.hallucination import name_pattern

HEADINGS = {
    "chair_i": "CHAIR_i",
    "chair_s": "CHAIR_s",
    "attribute_errors": "attribute errors",
    "wrong_count": "wrong count",
    "no_target_acc": "no-target accuracy",
}
POPE = ("accuracy", "precision", "recall", "f1", "yes")


def answers(loaded: Loaded, ranks: Ranks, args: argparse.Namespace) -> list[dict]:
    """The rows of `eval.segmentation`, free generation."""
    vocabulary = name_pattern({name for names in loaded.dataset["objects"][:] for name in names})
    settings = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size}
    return over_split(
        loaded,
        ranks,
        lambda _, samples: score(
            loaded.model, loaded.processor, samples, vocabulary, loaded.thresholds, loaded.arms, **settings
        ),
        question_ids(loaded.dataset, loaded.pictures),
        "free generation",
    )


def drawn_probes(loaded: Loaded, args: argparse.Namespace) -> dict[str, list[Probe]]:
    """The probes of every kind of negatives.

    Raises:
        DataError: no picture has both things that are there and things that are not, or it is not known which.
    """
    why = unknown_objects(loaded.dataset)
    if why is not None:
        raise DataError(f"{args.data}: {why}; measure hallucination on COCO panoptic, RefCOCO or scenes")
    names = [tuple(own) for own in loaded.dataset.select(range(loaded.pictures))["objects"][:]]
    found = {negatives: probes(names, args.each, negatives, args.seed) for negatives in NEGATIVES}
    if not all(found.values()):
        raise DataError(
            f"{args.data}: no picture has both things that are there (objects) and things that are not, so nothing "
            "can be probed; list what is in the pictures, or score the words alone with eval.segmentation"
        )
    return found


def probed(loaded: Loaded, ranks: Ranks, asked: list[Probe], negatives: str, args: argparse.Namespace) -> list[dict]:
    """A row per probe: whether the thing is there, and whether the model says so."""
    pictures = loaded.dataset.select_columns(["image_id"])

    def said(chunk, samples) -> list[dict]:
        here = [probe for probe in asked if probe.picture in chunk]
        images = {number: sample.image for number, sample in zip(chunk, samples, strict=True)}
        replies = ask(loaded.model, loaded.processor, images, here, args.template)
        return [
            {"id": p.id, "picture": pictures[p.picture]["image_id"], "present": p.present, "said": yes}
            for p, yes in zip(here, replies, strict=True)
        ]

    return over_split(loaded, ranks, said, [probe.id for probe in asked], f"{negatives} probes")


def pope_numbers(rows: list[dict]) -> dict:
    """POPE's numbers of one kind of negatives, accuracy with its 95 % interval over pictures."""
    pictures: dict[str, list[tuple[bool, bool]]] = {}
    for row in rows:
        pictures.setdefault(row["picture"], []).append((row["present"], row["said"]))
    groups = list(pictures.values())
    interval = bootstrap_interval(groups, lambda drawn: pooled(drawn)["accuracy"])
    return pooled(groups) | {"accuracy_95": interval, "n": len(rows)}


def pope_table(found: dict[str, dict]) -> str:
    """Markdown, a row per kind of negatives, percent."""
    lines = ["\n## POPE probes\n", "| negatives | " + " | ".join(POPE) + " | n |", "|" + "---|" * (len(POPE) + 2)]
    for negatives, own in found.items():
        low, high = own["accuracy_95"]
        cells = [f"{100 * own[key]:.1f}" for key in POPE]
        cells[0] += f" [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append("| " + " | ".join([negatives, *cells, str(own["n"])]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = options()
    with launched() as ranks:
        loaded = load(args, ranks)
        drawn = drawn_probes(loaded, args)  # what cannot be probed is refused before hours of answers
        work = {FREE: partial(answers, loaded, ranks, args)}
        work |= {f"pope_{kind}": partial(probed, loaded, ranks, own, kind, args) for kind, own in drawn.items()}
        rows = {}
        for name, answered in work.items():
            with questions_at_a_time("--batch-size ", args.batch_size, "without --ensemble it takes less"):
                rows[name] = answered()
            if ranks.rank == 0:
                settle_rows(args.out, name, rows[name])
        if ranks.rank > 0:
            return
    summary = describe("hallucination", loaded.pictures, len(loaded.dataset), loaded.thresholds, args)
    summary["asked"] = {FREE: EVERY}
    found = [{"arm": arm, "protocol": FREE} | summarise(rows[FREE], arm) for arm in loaded.thresholds]
    summary["results"] = [
        {key: value for key, value in own.items() if key.removesuffix("_95") in ("arm", "protocol", "n", *HEADINGS)}
        for own in found
    ]
    summary["pope"] = {negatives: pope_numbers(rows[f"pope_{negatives}"]) for negatives in NEGATIVES}
    text = markdown("Hallucination", summary, HEADINGS) + pope_table(summary["pope"])
    write_report(args.out, summary, text)


def options() -> argparse.Namespace:
    made = parser("hallucination", __doc__, protocols=(FREE,), max_new_tokens=512)
    made.add_argument("--template", default="Find the {}.", help="the question of a probe, {} is the name")
    made.add_argument("--each", type=int, default=3, help="present and absent things per picture")
    args = parsed(made)
    if "{}" not in args.template or args.each < 1:
        made.error(f"--template {args.template!r} --each {args.each}: give a {{}} for the name and at least 1 thing")
    return args


if __name__ == "__main__":
    with one_line_errors("eval.hallucination"):
        main()
