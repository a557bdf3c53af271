"""Questions about what things are for: "Where may a pedestrian walk?", "What must the driver not hit?"

The table is common knowledge about names of COCO and driving scenes, written for popen; a use is asked about where it
has an answer, or where its setting is there and the answer is that nothing serves it.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from popen.data import rle
from popen.data.schema import SEG

MOST_TARGETS = 4  # more of them make an answer nobody would say


@dataclass(frozen=True)
class Use:
    """A question, the answer with {} for what serves, names that serve, and names that make it worth asking."""

    question: str
    answer: str
    nothing: str
    names: frozenset[str]
    setting: frozenset[str] = frozenset()


def _use(question: str, answer: str, nothing: str, names: str, setting: str = "") -> Use:
    return Use(question, answer, nothing, _names(names), _names(setting))


def _names(listed: str) -> frozenset[str]:
    return frozenset(name.strip() for name in listed.split(",") if name.strip())


STREET = "road, car, bus, truck, traffic light, stop sign, parking meter"
USES = (
    _use(
        "Where may a pedestrian walk?",
        "A pedestrian may walk on {}.",
        "There is nothing here to walk on beside the road.",
        "pavement, sidewalk, path",
        "road",
    ),
    _use(
        "Where may a car drive?",
        "A car may drive on {}.",
        "There is nothing here for a car to drive on.",
        "road",
        "car, bus, truck",
    ),
    _use(
        "What must the driver not hit?",
        "The driver must not hit {}.",
        "There is nothing here that the driver could hit.",
        "pedestrian, bicyclist, person, bicycle, motorcycle, dog, cat, horse, cow, sheep, elephant",
        STREET,
    ),
    _use(
        "What tells the driver the rules?",
        "The rules are told by {}.",
        "There is nothing here that tells the rules.",
        "sign symbol, traffic light, stop sign",
        STREET,
    ),
    _use(
        "What keeps people off the road?",
        "People are kept off the road by {}.",
        "There is nothing here that keeps people off.",
        "fence",
        "road",
    ),
    _use(
        "What gives shade in summer?",
        "Shade is given by {}.",
        "There is nothing here that gives shade.",
        "tree, umbrella, tent",
        "grass, sand, road",
    ),
    _use(
        "What could someone sit on?",
        "Someone could sit on {}.",
        "There is nothing here to sit on.",
        "chair, couch, bench",
        "dining table, table, floor, wooden floor",
    ),
    _use(
        "What could someone ride?",
        "Someone could ride {}.",
        "There is nothing here to ride.",
        "bicycle, motorcycle, horse, skateboard, surfboard, snowboard, skis, elephant",
        "snow, sea, sand",
    ),
    _use(
        "What can be eaten?",
        "One can eat {}.",
        "There is nothing here to eat.",
        "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, fruit, food",
        "dining table, table, bowl",
    ),
    _use(
        "What could hold a drink?",
        "A drink fits into {}.",
        "There is nothing here to hold a drink.",
        "bottle, wine glass, cup",
        "dining table, table, counter",
    ),
    _use(
        "What could cut paper or bread?",
        "{} could cut them.",
        "There is nothing here to cut with.",
        "knife, scissors",
        "dining table, table",
    ),
    _use(
        "What shows the time?",
        "The time is shown by {}.",
        "There is nothing here that shows the time.",
        "clock",
        "wall, building",
    ),
    _use(
        "What would keep the rain off?",
        "The rain would be kept off by {}.",
        "There is nothing here to keep the rain off.",
        "umbrella, tent, roof, house",
        "person, grass",
    ),
    _use("What can fly?", "{} can fly.", "There is nothing here that can fly.", "airplane, bird, kite", "sky"),
    _use(
        "What could be read?",
        "One could read {}.",
        "There is nothing here to read.",
        "book, laptop, cell phone, paper",
        "couch, bed, shelf",
    ),
    _use(
        "Where could someone sleep?",
        "Someone could sleep on {}.",
        "There is nothing here to sleep on.",
        "bed, couch",
        "pillow, blanket",
    ),
)


def use_questions(
    targets: Sequence[tuple[str, np.ndarray]],
    complete: bool,
    most: int,
    rng: random.Random,
    hardly_seen: Collection[str] = (),
) -> list[tuple]:
    """At most `most` drafts (kind, question, answer, phrases, masks) about uses.

    Args:
        targets: name and mask, bool (H, W), of everything in the picture, in the order answers name them.
        complete: whether everything is labelled, so that what has no label is not there.
        rng: chooses among the uses.
        hardly_seen: names of what is there and no target, such as a thing of a few pixels.
    """
    present = {name for name, _ in targets}
    found = []
    for use in USES:
        serving = [(name, mask) for name, mask in targets if name in use.names]
        if 0 < len(serving) <= MOST_TARGETS:
            named = _listed([f"the {name} {SEG}" for name, _ in serving])
            words = use.answer.format(named)
            masks = tuple(rle.encode(mask) for _, mask in serving)
            found.append(
                ("use", use.question, words[0].upper() + words[1:], tuple(name for name, _ in serving), masks)
            )
        elif not serving and complete and present & use.setting and use.names.isdisjoint(hardly_seen):
            found.append(("no_use", use.question, use.nothing, (), ()))
    some = [draft for draft in found if draft[0] == "use"]
    none = [draft for draft in found if draft[0] == "no_use"]
    kept = rng.sample(none, min(len(none), most // 3))  # most questions have an answer
    return [*rng.sample(some, min(len(some), most - len(kept))), *kept]


def _listed(named: list[str]) -> str:
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
