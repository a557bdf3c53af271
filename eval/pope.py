"""POPE-style probes: is this thing in the picture? (Li et al. 2023), asked the way a segmenter is asked.

    python -m eval.pope --model popen/assets/popen-tiny --data runs/scenes --split dev --out runs/eval/base/pope.json

Every picture is probed for things that are there and for as many that are not, drawn by seed: at random, by how
popular they are in the data, or by how often they come with what is in the picture (adversarial). A mask, or an answer
that begins with "yes", says that it is there. Several processes (`torchrun -m eval.pope …`) share the pictures.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from eval.known_objects import unknown_objects
from eval.metrics import bootstrap_interval
from eval.ranks import gather_rows
from popen.data.safe_io import DataError, write_json
from popen.data.schema import Sample, load_split
from popen.distributed.ranks import Ranks, launched
from popen.errors import one_line_errors
from popen.lvlm.inference import generate_drafts
from popen.lvlm.loading import load_model

NEGATIVES = RANDOM, POPULAR, ADVERSARIAL = "random", "popular", "adversarial"
CHUNK = 32


@dataclass(frozen=True)
class Probe:
    """Is `name` in picture `picture`?"""

    picture: int
    name: str
    present: bool

    @property
    def id(self) -> str:
        """Sorts as pictures do."""
        return f"{self.picture:08d} {self.name}"


def probes(objects: list[tuple[str, ...]], each: int, negatives: str, seed: int) -> list[Probe]:
    """At most `each` things that are there and as many that are not, for every picture that has both.

    Args:
        objects: per picture the names of everything in it. negatives: how absent things are chosen, see the module.
    """
    rng = np.random.default_rng(seed)
    frequency = Counter(name for own in objects for name in set(own))
    together: dict[str, Counter] = {name: Counter() for name in frequency}
    for own in objects:
        for name in set(own):
            together[name].update(set(own) - {name})
    every, found = sorted(frequency), []
    for picture, own in enumerate(objects):
        there, absent = sorted(set(own)), [name for name in every if name not in own]
        count = min(each, len(there), len(absent))
        positives = rng.permutation(there)[:count].tolist()
        shuffled = rng.permutation(absent).tolist()  # so that ties fall by chance
        if negatives == POPULAR:
            shuffled.sort(key=lambda name: -frequency[name])
        elif negatives == ADVERSARIAL:
            near = Counter()
            for name in there:
                near.update(together[name])
            shuffled.sort(key=lambda name: -near[name])
        found += [Probe(picture, name, True) for name in positives]
        found += [Probe(picture, name, False) for name in shuffled[:count]]
    return found


def scores(said: list[tuple[bool, bool]]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and share of yes of (there, said to be there)."""
    both, yes, there = (sum(f(t, s) for t, s in said) for f in (lambda t, s: t and s, lambda t, s: s, lambda t, s: t))
    precision, recall = both / yes if yes else 0.0, both / there if there else 0.0
    return {
        "accuracy": sum(t == s for t, s in said) / len(said) if said else 0.0,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if both else 0.0,
        "yes": yes / len(said) if said else 0.0,
    }


def pooled(groups: list[list[tuple[bool, bool]]]) -> dict[str, float]:
    """`scores` of several pictures' answers together."""
    return scores([answer for group in groups for answer in group])


def says_yes(text: str, targets: int) -> bool:
    """Whether an answer says that the thing is there: by a mask, or in words."""
    return targets > 0 or text.strip().lower().startswith("yes")


def ask(model, processor, images: list[Image.Image], asked: list[Probe], template: str) -> list[bool]:
    """What the model says to each probe, greedy."""
    questions = [template.format(probe.name) for probe in asked]
    drafts = generate_drafts(model, processor, [images[p.picture] for p in asked], questions, batch_size=128)
    return [says_yes(draft.decoded.text, len(draft.embeddings)) for draft in drafts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="popen model folder or Hub id")
    parser.add_argument("--data", required=True, help="folder of a data set in popen's schema")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--template", default="Find the {}.", help="the question, {} is the name")
    parser.add_argument("--each", type=int, default=3, help="present and absent things per picture")
    parser.add_argument("--max-rows", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if "{}" not in args.template or args.each < 1:
        parser.error(f"--template {args.template!r} --each {args.each}: give a {{}} for the name and at least 1 thing")
    report = {"model": args.model, "data": args.data, "split": args.split, "template": args.template}
    with launched() as ranks:
        rows = load_split(args.data, args.split)
        rows = rows.select(range(len(rows) if args.max_rows is None else min(args.max_rows, len(rows))))
        why = unknown_objects(rows)
        if why is not None:
            raise DataError(f"{args.data}: {why}; probe on COCO panoptic, RefCOCO or scenes")
        objects = [tuple(own) for own in rows["objects"][:]]
        model, processor = load_model(args.model)
        model.to(ranks.device).eval()
        for negatives in NEGATIVES:
            asked = probes(objects, args.each, negatives, args.seed)
            if not asked:
                raise DataError(f"{args.data}: no picture has both things that are there and things that are not")
            groups = answered(model, processor, rows, asked, args.template, negatives, ranks)
            if ranks.rank > 0:
                continue
            found = pooled(groups) | {"n": len(asked)}
            found["accuracy_95"] = bootstrap_interval(groups, lambda g: pooled(g)["accuracy"])
            report[negatives] = found
            print(negatives, {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()})
        if ranks.rank > 0:
            return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, report)


def answered(
    model, processor, rows, asked: list[Probe], template: str, negatives: str, ranks: Ranks
) -> list[list[tuple[bool, bool]]]:
    """(there, said to be there) of each probe, by picture, on the first process; none on the others."""
    found = []
    starts = ranks.deal(range(0, len(rows), CHUNK))
    for start in tqdm(starts, desc=negatives, unit=f"{CHUNK} pictures", disable=ranks.rank > 0):
        here = [p for p in asked if start <= p.picture < start + CHUNK]
        images = {i: Sample.from_row(rows[i]).image for i in dict.fromkeys(p.picture for p in here)}
        said = ask(model, processor, images, here, template)
        found += [{"id": p.id, "probe": p, "said": yes} for p, yes in zip(here, said, strict=True)]
    pictures: dict[int, list[tuple[bool, bool]]] = {}
    for row in gather_rows(ranks, found, [p.id for p in asked], f"{negatives} probes"):
        pictures.setdefault(row["probe"].picture, []).append((row["probe"].present, row["said"]))
    return list(pictures.values())


if __name__ == "__main__":
    with one_line_errors("eval.pope"):
        main()
