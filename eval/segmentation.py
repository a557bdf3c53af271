"""Scores a model on any data set in popen's schema: words, masks, hallucinations, with every id exactly once.

    python -m eval.segmentation --model popen/assets/popen-tiny --data runs/scenes --split dev --out runs/eval/base

`--answers free` (default) lets the model speak; `--answers forced` teacher-forces the true answers. `--ensemble K`
adds the preference ensemble, `--controls` the ensemble that keeps the single pass's answers, the one over
noise-rectangle views, the uniform mean, shifted views alone and flip augmentation. `--calibration-split` finds
the mask threshold of each arm there; without it they are the configuration's. Writes `rows.jsonl` (a line per
question) and `summary.json`. About a minute for 1,000 scenes on two cores, ten times that with the ensemble. Options
may stand in a file: `--config eval/evaluations/smol_cut_camvid.yaml`. `torchrun -m eval.segmentation …` shares the
pictures over processes and writes what one process writes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from tqdm.auto import tqdm

from eval.arms import Arms, calibrated_thresholds, configured_thresholds, read_arms
from eval.known_objects import unknown_objects
from eval.metrics import MaskCounts, bootstrap_interval, ciou, giou, match_counts
from eval.ranks import gather_rows
from eval.rows import question_ids
from popen.data.safe_io import DataError, write_json
from popen.data.schema import Sample, check_unique_ids, load_split
from popen.distributed.ranks import ALONE, Ranks, launched
from popen.lvlm.calibration import truth_drafts
from popen.lvlm.inference import generate_drafts
from popen.lvlm.lengths import check_lengths
from popen.lvlm.loading import load_model
from popen.lvlm.out_of_memory import questions_at_a_time
from popen.preference.hallucination import Mentions, attribute_errors, chair_i, chair_s, mentions, name_pattern
from popen.recipe import run

CHUNK = 32  # pictures in memory at a time, with the masks of all arms


@dataclass
class SegmentationArguments:
    """Model, data and the arms to score."""

    model: str = field(metadata={"help": "popen model folder or Hub id."})
    data: str = field(metadata={"help": "Folder of a data set in popen's schema."})
    out: str = field(metadata={"help": "Folder for rows.jsonl and summary.json."})
    split: str = field(default="dev", metadata={"help": "Which split to score."})
    answers: Literal["free", "forced"] = field(default="free", metadata={"help": "Its own answers or the true ones."})
    ensemble: int = field(default=0, metadata={"help": "Hypotheses K of the preference ensemble; 0 is a single pass."})
    controls: bool = field(default=False, metadata={"help": "Also score uniform mean, views and flip augmentation."})
    calibration_split: str | None = field(
        default=None, metadata={"help": "Split to find each arm's mask threshold on; never the one that is scored."}
    )
    calibration_rows: int = field(default=200, metadata={"help": "At most this many pictures of it."})
    max_rows: int | None = field(default=None, metadata={"help": "Score the first so many pictures; all by default."})
    max_new_tokens: int = field(default=96, metadata={"help": "An answer ends after so many tokens."})
    batch_size: int = field(default=128, metadata={"help": "Questions generated together."})
    seed: int = field(default=0, metadata={"help": "Of the ensemble's hypotheses."})

    def __post_init__(self):
        if self.ensemble < 0:
            raise DataError(f"ensemble {self.ensemble}: give K >= 1 hypotheses, or 0 for a single pass")
        if self.calibration_split == self.split:
            raise DataError(
                f"calibration_split {self.split}: thresholds found on the split that is scored would flatter it"
            )
        if self.max_rows is not None and self.max_rows < 1:
            raise DataError(f"max_rows {self.max_rows}: score at least one picture")


def main(args: SegmentationArguments) -> None:
    torch.manual_seed(args.seed)
    with launched() as ranks:
        model, processor = load_model(args.model)
        model.to(ranks.device).eval()
        rows = load_split(args.data, args.split)
        check_unique_ids(rows)
        count = len(rows) if args.max_rows is None else min(args.max_rows, len(rows))
        no_chair = unknown_objects(rows)
        vocabulary = None if no_chair else name_pattern({name for names in rows["objects"][:] for name in names})
        if args.answers == "forced":
            check_lengths(processor, rows.select(range(count)), quiet=ranks.rank > 0)
        arms = Arms(args.ensemble, args.controls, args.seed)
        thresholds = configured_thresholds(model, arms)
        if args.calibration_split is not None:
            held_out = load_split(args.data, args.calibration_split)
            held_out = held_out.select(range(min(args.calibration_rows, len(held_out))))
            known = parts(held_out, len(held_out), "calibration")
            thresholds = ranks.first(lambda: calibrated_thresholds(model, processor, known, arms))
        what, scored = f"{args.answers} answers", []
        with questions_at_a_time("--batch-size ", args.batch_size, "without --ensemble it takes less"):
            for samples in parts(rows, count, what, ranks):
                scored += score(
                    model, processor, samples, vocabulary, thresholds, arms, args.answers,
                    max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
                )  # fmt: skip
        ids = question_ids(rows, count)
        scored = gather_rows(ranks, scored, ids, what)
        if ranks.rank > 0:
            return
    order = {name: place for place, name in enumerate(ids)}
    scored.sort(key=lambda row: order[row["id"]])
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    summary = {
        "model": str(args.model),
        "data": str(args.data),
        "split": args.split,
        "answers": args.answers,
        "thresholds": thresholds,
        "calibrated_on": args.calibration_split,
        "pictures": count,
        "questions": len(scored),
        "arms": {arm: summarise(scored, arm) for arm in scored[0]["arms"]},
    }
    if no_chair:
        print(f"CHAIR is left out: {no_chair}")
        summary["no_chair"] = no_chair
        for numbers in summary["arms"].values():
            numbers |= dict.fromkeys(("chair_i", "chair_i_95", "chair_s"))
    write_json(out / "summary.json", summary)
    for arm, numbers in summary["arms"].items():
        print(arm, {k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items() if k != "by_kind"})


def parts(rows, count: int, what: str, ranks: Ranks = ALONE) -> Iterator[list[Sample]]:
    """This process's share of the first `count` rows as samples, CHUNK at a time, with a progress bar."""
    shown = {"desc": what, "unit": f"{CHUNK} pictures", "disable": ranks.rank > 0}
    for start in tqdm(ranks.deal(range(0, count, CHUNK)), **shown):
        yield [Sample.from_row(rows[i]) for i in range(start, min(start + CHUNK, count))]


def score(
    model,
    processor,
    samples: list[Sample],
    vocabulary,
    thresholds: dict,
    arms: Arms,
    answers: str = "free",
    **settings,
) -> list[dict]:
    """One row per question with answer and counts of every arm.

    Args:
        vocabulary: names to look for in answers; None where it is not known what is in a picture.
        answers: "free" or "forced". settings: of `generate_drafts`.
    """
    asked = [(sample, question) for sample in samples for question in sample.questions]
    images, questions = [s.image for s, _ in asked], [q.question for _, q in asked]
    if answers == "forced":
        drafts = truth_drafts(model, processor, samples)
    else:
        drafts = generate_drafts(model, processor, images, questions, **settings)
    readings = read_arms(model, processor, samples, drafts, arms, choose=answers == "free")
    rows = []
    for index, (sample, question) in enumerate(asked):
        valid = ~sample.decoded_ignore()
        truth = question.decoded_masks(*valid.shape)
        row = {"id": question.id, "picture": sample.image_id, "kind": question.kind, "targets": len(question.masks)}
        row["arms"] = {}
        for arm, reading in readings.items():
            masks = (reading.logits[index] > thresholds[arm]).cpu().numpy().reshape(-1, *valid.shape)
            decoded = reading.drafts[index].decoded
            found = mentions(decoded.text, sample.objects, vocabulary) if vocabulary else Mentions(0, 0)
            row["arms"][arm] = {
                "answer": decoded.text,
                "exact": decoded.text == question.answer,
                "predicted": len(masks),
                "named": found.named,
                "hallucinated": found.hallucinated,
                "attribute_errors": attribute_errors(decoded.phrases, question.phrases),
                "counts": [[c.intersection, c.union] for c in match_counts(masks, truth, valid)],
            }
        rows.append(row)
    return rows


def summarise(rows: list[dict], arm: str) -> dict:
    """All numbers of one arm, with 95 % bootstrap intervals over pictures for the main ones."""
    rows = [row | row["arms"][arm] for row in rows]
    pictures: dict[str, list[dict]] = {}
    for row in rows:
        pictures.setdefault(row["picture"], []).append(row)
    groups = [[MaskCounts(*c) for row in group for c in row["counts"]] for group in pictures.values()]
    slots = [slot for group in groups for slot in group]
    found = [Mentions(row["named"], row["hallucinated"]) for row in rows]
    talk = [[Mentions(row["named"], row["hallucinated"]) for row in group] for group in pictures.values()]
    empty = [row for row in rows if row["targets"] == 0]
    full = [row for row in rows if row["targets"] > 0]
    kinds = sorted({row["kind"] for row in rows})
    flat = lambda chosen: [x for group in chosen for x in group]  # noqa: E731
    return {
        "ciou": ciou(slots),
        "ciou_95": bootstrap_interval(groups, lambda g: ciou(flat(g))),
        "giou": giou(slots),
        "giou_95": bootstrap_interval(groups, lambda g: giou(flat(g))),
        "chair_i": chair_i(found),
        "chair_i_95": bootstrap_interval(talk, lambda g: chair_i(flat(g))),
        "chair_s": chair_s(found),
        "attribute_errors": sum(row["attribute_errors"] for row in rows)
        / max(sum(row["predicted"] for row in rows), 1),
        "wrong_count": sum(row["predicted"] != row["targets"] for row in full) / len(full) if full else None,
        "no_target_acc": sum(row["predicted"] == 0 for row in empty) / len(empty) if empty else None,
        "target_acc": sum(row["predicted"] > 0 for row in full) / len(full) if full else None,
        "exact": sum(row["exact"] for row in rows) / len(rows),
        "n": len(rows),
        "by_kind": {
            kind: {
                "ciou": ciou([MaskCounts(*c) for row in rows if row["kind"] == kind for c in row["counts"]]),
                "exact": sum(r["exact"] for r in rows if r["kind"] == kind) / sum(r["kind"] == kind for r in rows),
            }
            for kind in kinds
        },
    }


if __name__ == "__main__":
    run(main, SegmentationArguments)
