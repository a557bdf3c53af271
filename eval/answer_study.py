"""Which of its own answers should a model give? Ways to choose among K others it had in mind, and what each gains.

    python -m eval.answer_study --model popen/assets/popen-tiny --data runs/scored --out docs/results/answers.json

Masks are the single pass's of each answer, so that words alone differ. No way has a fitted weight; each is shown with
the model's own answer given a head start of 0 and of 0.5 nats.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eval.metrics import match_counts
from eval.segmentation import parts
from popen.data.safe_io import write_json
from popen.data.schema import Sample, load_split
from popen.errors import one_line_errors
from popen.lvlm.answer_hypotheses import answer_hypotheses
from popen.lvlm.answer_likelihood import view_logps
from popen.lvlm.erased_views import denials, nothing_left
from popen.lvlm.inference import forced_drafts, generate_drafts, restored_masks
from popen.lvlm.loading import load_model
from popen.preference.answers import preferred_answer
from popen.preference.hallucination import mentions, name_pattern

COUNTS = (2, 4, 8)
HEAD_STARTS = (0.0, 0.5)
DRAWS = 1000


@dataclass(frozen=True)
class Candidates:
    """One question's answers, the own one first: scores, and what each is worth.

    `logps` (K, V), `left` (K,); `numbers` (K, 5): intersection, union, exact, hallucinated and named things.
    """

    picture: str
    kind: str
    logps: torch.Tensor
    left: torch.Tensor
    numbers: np.ndarray


Score = Callable[[Candidates], torch.Tensor]
SCORES: dict[str, Score] = {
    "log p of the picture": lambda c: c.logps[:, 0],
    "log p over shifted views": lambda c: c.logps.mean(1),
    "nothing left": lambda c: c.left,
    "log p of the picture + nothing left": lambda c: c.logps[:, 0] + c.left,
    "log p over shifted views + nothing left": lambda c: c.logps.mean(1) + c.left,
}


def main() -> None:
    args = parse()
    model, processor = load_model(args.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    rows = load_split(args.data, args.split)
    vocabulary = name_pattern({name for names in rows["objects"][:] for name in names})
    found: list[Candidates] = []
    for samples in parts(rows, min(args.max_rows, len(rows)), "answers"):
        found += candidates(model, processor, samples, vocabulary, args.views)
    table = [measure(found, *way) for way in ways(found)]
    report = {"model": args.model, "data": args.data, "split": args.split, "views": args.views}
    write_json(args.out, report | {"questions": len(found), "rows": table})
    print(markdown(table))


@torch.no_grad()
def candidates(model, processor, samples: list[Sample], vocabulary, views: int) -> list[Candidates]:
    """The answers of every question of some pictures."""
    asked = [(sample, question) for sample in samples for question in sample.questions]
    images, questions = [s.image for s, _ in asked], [q.question for _, q in asked]
    drafts = generate_drafts(model, processor, images, questions, batch_size=128)
    answers = answer_hypotheses(model, processor, images, questions, drafts, max(COUNTS))
    logps = view_logps(model, processor, images, questions, answers, views)
    spoken = denials(model, processor, images, questions, batch_size=128)
    left = nothing_left(model, processor, images, questions, answers, spoken)
    owner = [i for i, own in enumerate(answers) for _ in own]
    flat = [answer for own in answers for answer in own]
    forced = forced_drafts(model, processor, [images[i] for i in owner], [questions[i] for i in owner], flat)
    numbers: list[list[list[float]]] = [[] for _ in asked]
    for index, answer, logits in zip(owner, flat, restored_masks(model, forced), strict=True):
        sample, question = asked[index]
        valid = ~sample.decoded_ignore()
        masks = (logits > model.config.mask_threshold).cpu().numpy().reshape(-1, *valid.shape)
        slots = match_counts(masks, question.decoded_masks(*valid.shape), valid)
        said = mentions(answer, sample.objects, vocabulary)
        totals = [sum(c.intersection for c in slots), sum(c.union for c in slots)]
        numbers[index].append([*totals, answer == question.answer, said.hallucinated, said.named])
    return [
        Candidates(sample.image_id, question.kind, own, other, np.asarray(rows, float))
        for (sample, question), own, other, rows in zip(asked, logps, left, numbers, strict=True)
    ]


def ways(found: list[Candidates]):
    """(K, score, head start, index of the answer given to each question)."""
    yield 0, "the model's own answer", 0.0, [0] * len(found)
    for count in COUNTS:
        for name, score in SCORES.items():
            for start in HEAD_STARTS:
                chosen = [preferred_answer(score(c)[: count + 1], start) for c in found]
                yield count, name, start, chosen
        yield count, "best by truth (oracle)", 0.0, [oracle(c.numbers[: count + 1]) for c in found]


def oracle(numbers_K5: np.ndarray) -> int:
    """The answer with the best IoU, the first of equal ones; nothing against nothing is 1."""
    intersection, union = numbers_K5[:, 0], numbers_K5[:, 1]
    return int(np.argmax(np.where(union > 0, intersection / np.maximum(union, 1), 1.0)))


def measure(found: list[Candidates], count: int, name: str, start: float, chosen: list[int]) -> dict:
    """The numbers of one way, and its paired gain in cIoU over the model's own answers, 95 % over pictures."""
    pictures = sorted({c.picture for c in found})
    number = {picture: i for i, picture in enumerate(pictures)}
    sums = np.zeros((len(pictures), 2, 2))
    given = np.stack([c.numbers[k] for c, k in zip(found, chosen, strict=True)])
    own = np.stack([c.numbers[0] for c in found])
    at = [number[c.picture] for c in found]
    np.add.at(sums[:, 0], at, given[:, :2])
    np.add.at(sums[:, 1], at, own[:, :2])
    drawn = sums[np.random.default_rng(0).integers(len(pictures), size=(DRAWS, len(pictures)))].sum(1)
    gains = drawn[:, 0, 0] / drawn[:, 0, 1] - drawn[:, 1, 0] / drawn[:, 1, 1]
    total = sums.sum(0)
    kinds = sorted({c.kind for c in found})
    return {
        "k": count,
        "score": name,
        "head_start": start,
        "ciou": total[0, 0] / total[0, 1],
        "gain": total[0, 0] / total[0, 1] - total[1, 0] / total[1, 1],
        "gain_95": np.percentile(gains, [2.5, 97.5]).tolist(),
        "exact": given[:, 2].mean(),
        "chair_i": given[:, 3].sum() / max(given[:, 4].sum(), 1),
        "exact_by_kind": {kind: given[[c.kind == kind for c in found], 2].mean() for kind in kinds},
    }


def markdown(table: list[dict]) -> str:
    """Points and percent."""
    lines = ["| K | the answer with the best | head start | cIoU | gain | exact | CHAIR_i, % |", "|" + "---|" * 7]
    for row in table:
        low, high = row["gain_95"]
        gain = f"{100 * row['gain']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
        cells = [str(row["k"]), row["score"], f"{row['head_start']:g}", f"{100 * row['ciou']:.2f}", gain]
        lines.append("| " + " | ".join([*cells, f"{100 * row['exact']:.1f}", f"{100 * row['chair_i']:.2f}"]) + " |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--views", type=int, default=4, help="shifted views beside the picture itself")
    parser.add_argument("--max-rows", type=int, default=500)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    if args.views < 0 or args.max_rows < 1:
        parser.error(f"--views {args.views} --max-rows {args.max_rows}: give 0 or more views and at least 1 picture")
    return args


if __name__ == "__main__":
    with one_line_errors("eval.answer_study"):
        main()
