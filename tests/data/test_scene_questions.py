import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.scene_questions import ENDS, KINDS, RANKS, SIDES, USES, ask, sample
from popen.data.scenes import COLOURS, NAMES, SHAPES, draw_scene
from popen.data.schema import SEG, Sample

NAME = rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"


@pytest.fixture(scope="module")
def asked():
    """(scene, question, its targets in order) of 300 scenes."""
    found = []
    for seed in range(300):
        scene = draw_scene(seed)
        for question in ask(scene):
            masks = question.decoded_masks(96, 96)
            targets = [next(t for t in scene.things if np.array_equal(t.mask, mask)) for mask in masks]
            found.append((scene, question, targets))
    return found


def of_kind(asked, kind):
    chosen = [row for row in asked if row[1].kind == kind]
    assert len(chosen) > 200
    return chosen


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


def same(targets, things):
    return [id(t) for t in targets] == [id(t) for t in sorted(things, key=lambda t: t.centre[0])]


def described(scene, word):
    return [t for t in scene.things if word in (t.colour, t.shape, t.texture)]


def test_kinds_and_ids(asked):
    counts = Counter(question.kind for _, question, _ in asked)
    assert set(counts) == set(KINDS) and min(counts.values()) > 0.9 * 300
    assert len({question.id for _, question, _ in asked}) == len(asked)


def test_deterministic():
    assert ask(draw_scene(5)) == ask(draw_scene(5))
    assert ask(draw_scene(5), np.random.default_rng(1)) != ask(draw_scene(5), np.random.default_rng(2))


def test_answer_names_its_targets_in_order(asked):
    for scene, question, targets in asked:
        assert question.phrases == tuple(t.name for t in targets) and len(targets) <= 4
        assert tuple(re.findall(rf"({NAME}) {SEG}", question.answer)) == question.phrases
        assert question.answer.count(SEG) == len(question.masks)
        assert all(a.centre[0] <= b.centre[0] for a, b in pairwise(targets))
        if question.kind != "none":  # every name it says is there
            assert set(re.findall(NAME, question.answer)) <= {t.name for t in scene.things}
            assert targets


def test_attribute(asked):
    for scene, question, (target,) in of_kind(asked, "attribute"):
        said = words(question.question)
        features = said & {*COLOURS, *SHAPES, "striped", "dotted"}
        assert features
        fits = [t for t in scene.things if features <= {t.colour, t.shape, t.texture}]
        assert len(fits) == 1 and fits[0] is target
        assert question.answer == f"It is the {target.name} {SEG}."


def test_relation(asked):
    clauses = Counter()
    for scene, question, (target,) in of_kind(asked, "relation"):
        name = re.findall(NAME, question.question)[0]
        (reference,) = (t for t in scene.things if t.name == name)
        others = [t for t in scene.things if t is not reference]
        clause = re.fullmatch(rf"The {target.name} {SEG} (?:is |lies )(.+) the {name}\.", question.answer)[1]
        clauses[clause] += 1
        offset = {id(t): np.subtract(t.centre, reference.centre) for t in others}
        if clause in SIDES:
            axis, sign = SIDES[clause]
            ahead = {key: sign * way[axis] for key, way in offset.items()}
            assert ahead.pop(id(target)) >= 5 and all(value <= -5 for value in ahead.values())
        elif clause == "nearest to":
            far = {key: np.hypot(*way) for key, way in offset.items()}
            assert 1.25 * far.pop(id(target)) <= min(far.values())
        else:
            assert clause == "inside" and reference.shape == "ring"
            assert np.hypot(*offset[id(target)]) < 0.3 * reference.size
    assert set(clauses) == {*SIDES, "nearest to", "inside"}


def test_ordinal(asked):
    seen = set()
    for scene, question, (target,) in of_kind(asked, "ordinal"):
        word = re.fullmatch(rf"The (.+) thing is the {target.name} {SEG}\.", question.answer)[1]
        assert word in question.question
        seen.add(word)
        others = [t for t in scene.things if t is not target]
        if word in ENDS:
            axis, sign = ENDS[word]
            assert all(sign * (target.centre[axis] - t.centre[axis]) >= 5 for t in others)
            continue
        areas, own = sorted(int(t.mask.sum()) for t in others), int(target.mask.sum())
        if word == "smallest":
            assert areas[0] >= 1.2 * own
        elif word == "largest":
            assert own >= 1.2 * areas[-1]
        else:
            assert areas[-1] >= 1.2 * own and own >= 1.2 * areas[-2]
    assert seen == {*ENDS, *RANKS}


def test_reasoning(asked):
    for scene, question, targets in of_kind(asked, "reasoning"):
        (use,) = (use for use in USES if question.answer.endswith(f"{SEG} {use}."))
        shapes, wordings = USES[use]
        assert question.question in wordings
        assert same(targets, [t for t in scene.things if t.shape in shapes])


def test_no_wording_asks_for_two_uses():
    wordings = [wording for _, some in USES.values() for wording in some]
    assert len(set(wordings)) == len(wordings)
    assert {shape for shapes, _ in USES.values() for shape in shapes} == set(SHAPES)


def test_multi(asked):
    for scene, question, targets in of_kind(asked, "multi"):
        names = re.findall(NAME, question.question)
        if names:
            assert len(names) == 2 and same(targets, [t for t in scene.things if t.name in names])
        else:
            (word,) = words(question.question) & {*COLOURS, *SHAPES, "striped", "dotted"}
            assert same(targets, described(scene, word))
        assert 2 <= len(targets) <= 4 and question.answer.startswith("Here are the ")


def test_none(asked):
    hard = []
    for scene, question, _ in of_kind(asked, "none"):
        assert question.phrases == question.masks == () and SEG not in question.answer
        colours, shapes = {t.colour for t in scene.things}, {t.shape for t in scene.things}
        if question.answer.startswith("There is nothing inside"):
            (ring,) = (t for t in scene.things if t.name == re.findall(NAME, question.answer)[0])
            others = [t for t in scene.things if t is not ring]
            assert all(np.hypot(*np.subtract(t.centre, ring.centre)) > 0.3 * ring.size for t in others)
        elif question.answer.startswith("Nothing here"):
            able, wordings = USES[question.answer.removeprefix("Nothing here ").removesuffix(".")]
            assert not shapes & set(able) and question.question in wordings
        elif names := re.findall(NAME, question.answer):
            assert re.findall(NAME, question.question) == names
            for name in names:
                colour, shape = name.split()
                assert name not in {t.name for t in scene.things}
                hard.append(colour in colours and shape in shapes)
        else:
            word = re.fullmatch(r"There is no (\w+)(?: thing)? here\.", question.answer)[1]
            assert word in words(question.question) and not described(scene, word)
    assert np.mean(hard) > 0.6


def test_single_target_named_in_question_has_no_twin(asked):
    for scene, question, _ in asked:
        count = Counter(t.name for t in scene.things)
        assert all(count[name] <= 1 for name in re.findall(NAME, question.question))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2_099_999))
def test_sample_passes_the_schema(seed):
    made = sample(seed)
    read = Sample.from_row(made.to_row())
    assert read.questions == made.questions and read.image_id == f"scene-{seed}"
    assert set(made.objects) <= NAMES and not made.decoded_ignore().any()
    assert [q.id for q in made.questions] == [f"scene-{seed}-{i}" for i in range(len(made.questions))]
    for question in made.questions:
        masks = question.decoded_masks(96, 96)
        assert masks.sum(0).max(initial=0) <= 1 and masks.any((1, 2)).all()
