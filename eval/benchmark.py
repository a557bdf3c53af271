"""What all benchmarks share: a model over a split, teacher-forced and in free generation, every id exactly once.

A benchmark says which words to force, how one reply is scored and which numbers follow from the rows. OUT then holds
`rows_free.jsonl` and `rows_forced.jsonl` (a line per question), `summary.json` and `report.md`.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from eval.arms import Arms, configured_thresholds, read_arms
from eval.benchmark_folder import IDENTITY, check_free, default_folder, settle_rows, write_report
from eval.benchmark_report import Metric, describe, markdown, results
from eval.published_rows import PROTOCOLS, Published
from eval.ranks import CHUNK, gather_rows, share
from eval.rows import check_source, question_ids
from popen.data.schema import SEG, Question, Sample, check_unique_ids, load_split
from popen.distributed.ranks import Ranks, launched
from popen.lvlm.inference import forced_drafts, generate_drafts
from popen.lvlm.lengths import check_lengths, no_answer
from popen.lvlm.loading import load_model
from popen.lvlm.out_of_memory import questions_at_a_time

FREE, FORCED = "free", "forced"
EVERY, TARGETS = "every question", "questions with targets"


@dataclass(frozen=True)
class Reply:
    """One arm's answer to a question: words, phrases, mask logits (T, H, W) of the picture's size, above 0 inside."""

    text: str
    phrases: tuple[str, ...]
    logits: torch.Tensor

    @property
    def masks(self) -> np.ndarray:
        """The masks, bool (T, H, W)."""
        return (self.logits > 0).cpu().numpy()


@dataclass(frozen=True)
class Benchmark:
    """What one benchmark adds to the shared run.

    Args:
        name: of its command. title: in the report. score: numbers of one reply, as JSON. metrics: of many rows.
        forced_answer: from the true answer to the words to teacher-force; None where a question must not be forced.
        source: of the data set, first in its ids. published: rows of others to print beside.
    """

    name: str
    title: str
    score: Callable[[Sample, Question, Reply], dict]
    metrics: dict[str, Metric]
    forced_answer: Callable[[str], str | None]
    source: str
    published: tuple[Published, ...] = ()


def with_one_mask(answer: str) -> str:
    """The true answer, or a tag alone where it has none: LISA forces `[SEG]` whatever is true."""
    return answer if SEG in answer else SEG


def with_targets(answer: str) -> str | None:
    """The true answer where it has targets; elsewhere its words would give away that there are none."""
    return answer if SEG in answer else None


def as_it_is(answer: str) -> str:
    """The true answer."""
    return answer


def parser(
    name: str, description: str, protocols: tuple[str, ...] = (FREE, FORCED), max_new_tokens: int = 96
) -> argparse.ArgumentParser:
    """The options of every benchmark; `protocols` are those it has, and its answers are at most so long."""
    made = argparse.ArgumentParser(prog=f"eval.{name}", description=description.splitlines()[0])
    made.add_argument("--model", required=True, help="popen model folder or Hub id")
    made.add_argument("--data", required=True, help="folder of the data set in popen's schema, see docs/benchmarks.md")
    made.add_argument("--split", default="val")
    made.add_argument(
        "--out", type=Path, help="folder for rows and report; runs/eval/NAME/DATA/SPLIT/MODEL by default"
    )
    made.add_argument("--answers", nargs="+", choices=protocols, default=list(protocols))
    made.add_argument("--ensemble", type=int, default=0, metavar="K", help="also score the preference ensemble of K")
    made.add_argument("--max-rows", type=int, default=None, help="only the first pictures: for a try")
    made.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--seed", type=int, default=0)
    return made


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options as given, and where results go if nothing else was said."""
    args = made.parse_args()
    args.benchmark = made.prog.removeprefix("eval.")
    if args.out is None:
        args.out = default_folder(args.benchmark, args.data, args.split, args.model)
    return args


@dataclass(frozen=True)
class Loaded:
    """A model on its device, the split, how many of its pictures to score, and in which arms."""

    model: torch.nn.Module
    processor: object
    dataset: datasets.Dataset
    pictures: int
    arms: Arms
    thresholds: dict[str, float]


def load(args: argparse.Namespace, ranks: Ranks, benchmark: Benchmark | None = None) -> Loaded:
    """Model and split of the options, checked before anything is answered.

    Raises:
        ValueError: an option, the model or the data cannot be used, a question does not fit the model's context, or
            OUT holds results of something else.
    """
    if args.ensemble < 0 or (args.max_rows is not None and args.max_rows < 1):
        raise ValueError(
            f"--ensemble {args.ensemble} --max-rows {args.max_rows}: give K >= 0 and at least one picture"
        )
    check_free(args.out, {name: str(getattr(args, name)) for name in IDENTITY})
    dataset = load_split(args.data, args.split)
    check_unique_ids(dataset)
    pictures = len(dataset) if args.max_rows is None else min(args.max_rows, len(dataset))
    if benchmark is not None:
        check_source(question_ids(dataset, len(dataset)), benchmark.source, args.data)
    model, processor = load_model(args.model)
    model.to(ranks.device).eval()
    words = benchmark.forced_answer if benchmark is not None and FORCED in args.answers else no_answer
    check_lengths(processor, dataset.select(range(pictures)), words, quiet=ranks.rank > 0)
    arms = Arms(args.ensemble, seed=args.seed)
    return Loaded(model, processor, dataset, pictures, arms, configured_thresholds(model, arms))


def run(benchmark: Benchmark, args: argparse.Namespace) -> None:
    """Answers, scores and writes; only the first of several processes writes."""
    with launched() as ranks:
        loaded = load(args, ranks, benchmark)
        with questions_at_a_time("--batch-size ", args.batch_size, "without --ensemble it takes less"):
            rows = answer_all(benchmark, loaded, ranks, args)
        if ranks.rank == 0:
            summary = describe(benchmark.name, loaded.pictures, len(loaded.dataset), loaded.thresholds, args)
            summary |= {"asked": asked(benchmark, args), "results": results(rows, benchmark.metrics)}
            headings = {name: metric.heading for name, metric in benchmark.metrics.items()}
            text = markdown(benchmark.title, summary, headings, benchmark.published)
            write_report(args.out, summary, text)


def asked(benchmark: Benchmark, args: argparse.Namespace) -> dict[str, str]:
    """Which questions each protocol is about, for whoever checks that its rows are whole."""
    forced = TARGETS if benchmark.forced_answer is with_targets else EVERY
    return {protocol: forced if protocol == FORCED else EVERY for protocol in args.answers}


def answer_all(benchmark: Benchmark, loaded: Loaded, ranks: Ranks, args: argparse.Namespace) -> dict[str, list[dict]]:
    """The rows of every protocol asked for, all of them on the first process and none on the others.

    Those of a protocol are written before the next begins: hours of answers outlast what goes wrong later.
    """
    found = {}
    for protocol in args.answers:
        words = benchmark.forced_answer if protocol == FORCED else None
        ids = question_ids(loaded.dataset, loaded.pictures, words or as_it_is)
        score = lambda _, samples, words=words: replies(benchmark, loaded, samples, words, args)  # noqa: E731
        found[protocol] = over_split(loaded, ranks, score, ids, PROTOCOLS[protocol])
        if ranks.rank == 0:
            settle_rows(args.out, protocol, found[protocol])
    return found


def over_split(
    loaded: Loaded, ranks: Ranks, score: Callable[[range, list[Sample]], list[dict]], expected: list[str], what: str
) -> list[dict]:
    """Rows of `score` over this process's pictures, gathered: all on the first process, none on the others."""
    found = []
    for chunk in tqdm(share(ranks, loaded.pictures), desc=what, unit=f"{CHUNK} pictures", disable=ranks.rank > 0):
        found += score(chunk, [Sample.from_row(loaded.dataset[i]) for i in chunk])
    return gather_rows(ranks, found, expected, what)


def replies(
    benchmark: Benchmark,
    loaded: Loaded,
    samples: list[Sample],
    words: Callable[[str], str | None] | None,
    args: argparse.Namespace,
) -> list[dict]:
    """One row per question, scored in every arm.

    Args:
        words: from the true answer to the words to force, None to leave a question out; None for free generation.
    """
    model, processor = loaded.model, loaded.processor
    if words is not None:
        kept = [tuple(q for q in s.questions if words(q.answer) is not None) for s in samples]
        samples = [replace(s, questions=own) for s, own in zip(samples, kept, strict=True)]
    pairs = [(sample, question) for sample in samples for question in sample.questions]
    if not pairs:
        return []
    images, questions = [s.image for s, _ in pairs], [q.question for _, q in pairs]
    if words is None:
        drafts = generate_drafts(model, processor, images, questions, args.max_new_tokens, args.batch_size)
    else:
        answers = [words(q.answer) for _, q in pairs]
        drafts = forced_drafts(model, processor, images, questions, answers, args.batch_size)
    readings = read_arms(model, processor, samples, drafts, loaded.arms, choose=words is None)
    rows = []
    for index, (sample, question) in enumerate(pairs):
        row = {"id": question.id, "picture": sample.image_id, "kind": question.kind}
        row |= {"targets": len(question.masks), "arms": {}}
        for arm, reading in readings.items():
            decoded, logits = reading.drafts[index].decoded, reading.logits[index] - loaded.thresholds[arm]
            reply = Reply(decoded.text, decoded.phrases, logits.reshape(-1, *sample.image.size[::-1]))
            said = {"answer": decoded.text, "predicted": len(reply.logits)}
            row["arms"][arm] = said | benchmark.score(sample, question, reply)
        rows.append(row)
    return rows
