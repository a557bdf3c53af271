"""Questions about a scene, with exact answers and masks read off its scene graph.

The wording of a question varies; that of an answer follows from the question's type and its targets alone. An answer
names its targets from left to right as "colour shape <seg>" and says why they are the answer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypeVar

import numpy as np
from PIL import Image

from popen.data import rle
from popen.data.scenes import BASE_SIZE, COLOURS, HOLE, NAMES, SHAPES, Scene, Thing, draw_scene
from popen.data.schema import SEG, Question, Sample, empty_ignore

KINDS = ("attribute", "relation", "ordinal", "reasoning", "multi", "none")
MARGIN = 5  # pixels of a 96-pixel image between what is and what is not on a side
AREA_RATIO = 1.2
DISTANCE_RATIO = 1.25
MOST_TARGETS = 4
USES = {  # what a thing can do: the shapes that can, and the questions that ask for it
    "could roll away": (("ball", "ring"), ("Which of these could roll away?", "What would not stay put on a slope?")),
    "could prick a finger": (("cone", "star"), ("Which of these could prick a finger?", "What has sharp points?")),
    "could hold soup": (("bowl",), ("Which of these could hold soup?", "What would you eat your soup from?")),
    "could be looked through": (("ring",), ("Which of these could be looked through?", "What has a hole in it?")),
    "could bridge a ditch": (("plank",), ("Which of these could bridge a ditch?", "What could be used as a shelf?")),
    "could be sent by mail": (("box",), ("Which of these could be sent by mail?", "What could a gift be packed in?")),
    "could be kicked in a game": (
        ("ball",),
        ("Which of these could be kicked in a game?", "What could score a goal?"),
    ),
    "could be worn at a party": (
        ("cone",),
        ("Which of these could be worn at a party?", "What could be a party hat?"),
    ),
    "could top a Christmas tree": (("star",), ("Which of these could top a Christmas tree?", "What shines at night?")),
    "could stand for first aid": (
        ("cross",),
        ("Which of these could stand for first aid?", "What looks like a plus sign?"),
    ),
}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis and sign
ENDS = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "lowest": (1, 1)}
RANKS = {"largest": (0, -1), "second largest": (1, -1), "smallest": (0, 1)}  # place, and the sign of the order
_TAG = 0xA5C  # a stream of its own, apart from the one that draws the scene
_FIND = ("Segment the {}.", "Find the {}.", "Where is the {}?", "Show me the {}.")
_WHICH = ("Which thing is {}?", "Find the {} thing.", "Segment the {} thing.", "Show me the {} thing.")
_EVERY = ("Segment every {}.", "Find every {}.", "Show me each {}.")
_ALL = ("Segment all the {} things.", "Find all the {} things.", "Show me every {} thing.")
_PAIR = ("Segment the {} and the {}.", "Find the {} and the {}.", "Where are the {} and the {}?")
_INSIDE = ("What lies inside the {}?", "Which thing is inside the {}?", "Segment what is inside the {}.")

_NEAREST = ("Which thing is nearest to the {}?", "What is nearest to the {}?", "Segment the thing nearest to the {}.")
_BESIDE = ("What is {} the {}?", "Which thing is {} the {}?", "Segment the thing {} the {}.")
_ORDINAL = ("Which thing is the {}?", "Segment the {} thing.", "Find the {} thing.")
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Draft:
    """A question, its targets from left to right, and the answer with {} for them."""

    question: str
    answer: str
    targets: tuple[Thing, ...] = ()


def ask(scene: Scene, rng: np.random.Generator | None = None) -> tuple[Question, ...]:
    """Ask about a scene: one question of each of KINDS that it allows without ambiguity.

    Args:
        scene: from `draw_scene`.
        rng: chooses among the questions; by default it follows from the scene's seed.
    Returns:
        At most six questions with ids `scene-<seed>-<i>`; those of kind "none" have no targets.
    """
    rng = rng or np.random.default_rng([_TAG, scene.seed])
    makers = (_attribute, _relation, _ordinal, _reasoning, _multi, _none)
    drafts = ((kind, make(scene, rng)) for kind, make in zip(KINDS, makers, strict=True))
    made = [(kind, draft) for kind, draft in drafts if draft is not None]
    return tuple(_finish(f"scene-{scene.seed}-{i}", kind, draft) for i, (kind, draft) in enumerate(made))


def sample(seed: int, size: int = BASE_SIZE) -> Sample:
    """Draw the scene of a seed and ask about it; arguments and errors as for `draw_scene`."""
    scene = draw_scene(seed, size)
    names = tuple(thing.name for thing in scene.things)
    return Sample(Image.fromarray(scene.image), f"scene-{seed}", names, empty_ignore(size, size), ask(scene))


def _finish(question_id: str, kind: str, draft: _Draft) -> Question:
    named = _join([f"the {thing.name} {SEG}" for thing in draft.targets])
    answer = draft.answer.format(named)
    answer = answer[0].upper() + answer[1:]
    phrases = tuple(thing.name for thing in draft.targets)
    masks = tuple(rle.encode(thing.mask) for thing in draft.targets)
    return Question(question_id, kind, draft.question, answer, phrases, masks)


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _left_to_right(things: Iterable[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: thing.centre))


def _named_once(scene: Scene) -> list[Thing]:
    """Things without a twin: their names are unambiguous."""
    count = Counter(thing.name for thing in scene.things)
    return [thing for thing in scene.things if count[thing.name] == 1]


def _groups(scene: Scene, feature: str) -> dict[str, tuple[Thing, ...]]:
    """Things by "name", "colour", "shape" or "texture"; plain is no texture to ask for."""
    values = sorted({getattr(thing, feature) for thing in scene.things} - {"plain"})
    return {value: _left_to_right(t for t in scene.things if getattr(t, feature) == value) for value in values}


def _attribute(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    options = []
    for feature in ("name", "colour", "shape", "texture"):
        single = [(value, group) for value, group in _groups(scene, feature).items() if len(group) == 1]
        if single:
            options.append((_FIND if feature in ("name", "shape") else _WHICH, single))
    if not options:
        return None
    templates, single = _pick(rng, options)
    value, target = _pick(rng, single)
    return _Draft(_pick(rng, templates).format(value), "it is {}.", target)


def _relation(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    known = _named_once(scene)
    rings = [(ring, _inside(ring, scene)) for ring in known if ring.shape == "ring"]
    held = [(ring, inner[0]) for ring, inner in rings if inner is not None and len(inner) == 1]
    if held and rng.random() < 0.7:
        ring, inner = _pick(rng, held)
        return _Draft(_pick(rng, _INSIDE).format(ring.name), f"{{}} lies inside the {ring.name}.", (inner,))
    beside = [
        (side, thing, found) for side in SIDES for thing in known if (found := _beside(thing, side, scene)) is not None
    ]
    near = [(thing, found) for thing in known if (found := _nearest(thing, scene)) is not None]
    if near and (not beside or rng.random() < 0.2):
        reference, target = _pick(rng, near)
        question = _pick(rng, _NEAREST).format(reference.name)
        return _Draft(question, f"{{}} is nearest to the {reference.name}.", (target,))
    if not beside:
        return None
    side, reference, target = _pick(rng, beside)
    question = _pick(rng, _BESIDE).format(side, reference.name)
    return _Draft(question, f"{{}} is {side} the {reference.name}.", (target,))


def _inside(ring: Thing, scene: Scene) -> list[Thing] | None:
    """What lies in the hole of a ring; None where something only reaches into it."""
    radius = HOLE * ring.size / 2 - 0.5  # off the ring's own soft edge
    y, x = np.ogrid[: ring.mask.shape[0], : ring.mask.shape[1]]
    hole = np.hypot(x + 0.5 - ring.centre[0], y + 0.5 - ring.centre[1]) <= radius
    shares = [(thing, (thing.mask & hole).sum() / thing.mask.sum()) for thing in scene.things if thing is not ring]
    if any(0 < share < 0.95 for _, share in shares):
        return None
    return [thing for thing, share in shares if share > 0]


def _nearest(reference: Thing, scene: Scene) -> Thing | None:
    """The thing clearly nearest by centres, and also by the gap between outlines."""
    others = [thing for thing in scene.things if thing is not reference]
    distance = [np.hypot(*np.subtract(thing.centre, reference.centre)) for thing in others]
    gaps = [far - _extent(thing) / 2 for far, thing in zip(distance, others, strict=True)]
    order = np.argsort(distance)
    clear = distance[order[1]] >= DISTANCE_RATIO * distance[order[0]] and np.argmin(gaps) == order[0]
    return others[order[0]] if clear else None


def _beside(reference: Thing, side: str, scene: Scene) -> Thing | None:
    """The only thing on a side of another, if it is clearly there and every other thing clearly is not."""
    axis, sign = SIDES[side]
    margin = MARGIN * scene.image.shape[0] / BASE_SIZE
    on_side = []
    for thing in scene.things:
        ahead = sign * (thing.centre[axis] - reference.centre[axis])
        aside = abs(thing.centre[1 - axis] - reference.centre[1 - axis])
        if thing is reference or ahead <= -margin:
            continue
        if ahead < max(margin, 0.35 * aside):  # a thing far below and a little left is not "left"
            return None
        on_side.append(thing)
    return on_side[0] if len(on_side) == 1 else None


def _extent(thing: Thing) -> float:
    """Diameter in pixels of the circle that the thing turns in."""
    return thing.size * SHAPES[thing.shape][0]


def _ordinal(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    ranked = {rank: thing for rank in RANKS if (thing := _ranked(scene, rank)) is not None}
    at_end = {end: thing for end in ENDS if (thing := _at_end(scene, end)) is not None}
    families = [found for found in (ranked, at_end) if found]
    if not families:
        return None
    found = _pick(rng, families)
    word = _pick(rng, list(found))
    return _Draft(_pick(rng, _ORDINAL).format(word), f"the {word} thing is {{}}.", (found[word],))


def _ranked(scene: Scene, rank: str) -> Thing | None:
    """The thing of a rank by visible area, if areas differ clearly and extents do not contradict them."""
    place, sign = RANKS[rank]
    things = sorted(scene.things, key=lambda thing: sign * thing.mask.sum())
    areas = [int(thing.mask.sum()) for thing in things]
    ratios = [max(a, b) / min(a, b) for a, b in pairwise(areas)]
    extents = [sign * _extent(thing) for thing in things]
    agree = all(extents[i] <= min(extents[i:]) for i in range(place + 1))
    return things[place] if agree and min(ratios[: place + 1]) >= AREA_RATIO else None


def _at_end(scene: Scene, end: str) -> Thing | None:
    """The thing farthest to one side by its centre, clearly, and by its outermost pixel."""
    axis, sign = ENDS[end]
    things = sorted(scene.things, key=lambda thing: -sign * thing.centre[axis])
    lead = sign * (things[0].centre[axis] - things[1].centre[axis])
    edges = [(sign * np.flatnonzero(thing.mask.any(axis))).max() for thing in things]
    clear = lead >= MARGIN * scene.image.shape[0] / BASE_SIZE and edges[0] > max(edges[1:])
    return things[0] if clear else None


def _reasoning(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    able = {use: _left_to_right(t for t in scene.things if t.shape in shapes) for use, (shapes, _) in USES.items()}
    possible = [use for use, things in able.items() if 1 <= len(things) <= MOST_TARGETS]
    if not possible:
        return None
    use = _pick(rng, possible)
    return _Draft(_pick(rng, USES[use][1]), f"{{}} {use}.", able[use])


def _multi(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    options: list[_Draft] = []
    for feature in ("colour", "shape", "texture"):
        groups = [(v, g) for v, g in _groups(scene, feature).items() if 2 <= len(g) <= MOST_TARGETS]
        if groups:
            value, group = _pick(rng, groups)
            template = _pick(rng, _EVERY if feature == "shape" else _ALL)
            options.append(_Draft(template.format(value), "here are {}.", group))
    pairs = list(combinations(_named_once(scene), 2))
    if pairs:
        pair = _pick(rng, pairs)
        first, second = pair if rng.random() < 0.5 else pair[::-1]
        question = _pick(rng, _PAIR).format(first.name, second.name)
        options.append(_Draft(question, "here are {}.", _left_to_right(pair)))
    return _pick(rng, options) if options else None


def _none(scene: Scene, rng: np.random.Generator) -> _Draft:
    """Ask for what is not there; a name is hardest when its colour and its shape are, apart."""
    names = sorted(NAMES - {thing.name for thing in scene.things})
    colours, shapes = ({getattr(thing, part) for thing in scene.things} for part in ("colour", "shape"))
    hard = [name for name in names if name.split()[0] in colours and name.split()[1] in shapes] or names
    some = hard if rng.random() < 0.75 else names
    name, other = _pick(rng, some), _pick(rng, some)
    options = [_Draft(_pick(rng, _FIND).format(name), f"there is no {name} here.")] * 3
    if name != other:
        question = _pick(rng, _PAIR).format(name, other)
        options.append(_Draft(question, f"there is no {name} and no {other} here."))
    shape = _pick(rng, sorted(SHAPES.keys() - shapes))
    options.append(_Draft(_pick(rng, _FIND + _EVERY).format(shape), f"there is no {shape} here."))
    colour = _pick(rng, sorted(COLOURS.keys() - colours))
    options.append(_Draft(_pick(rng, _WHICH + _ALL).format(colour), f"there is no {colour} thing here."))
    for texture in sorted({"striped", "dotted"} - {thing.texture for thing in scene.things}):
        options.append(_Draft(_pick(rng, _WHICH + _ALL).format(texture), f"there is no {texture} thing here."))
    unable = [use for use, (able, _) in USES.items() if not shapes & set(able)]
    if unable:
        use = _pick(rng, unable)
        options += [_Draft(_pick(rng, USES[use][1]), f"nothing here {use}.")] * 2
    for ring in _named_once(scene):
        if ring.shape == "ring" and _inside(ring, scene) == []:
            question = _pick(rng, _INSIDE).format(ring.name)
            options += [_Draft(question, f"there is nothing inside the {ring.name}.")] * 2
    return _pick(rng, options)
