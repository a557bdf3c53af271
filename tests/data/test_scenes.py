import hashlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.scenes import COLOURS, NAMES, SHAPES, SPLIT_SEEDS, TEXTURES, VISIBLE_SHARE, draw_scene, silhouette

seeds = st.integers(0, 2_099_999)


def digest(seed):
    return hashlib.sha256(draw_scene(seed).image.tobytes()).hexdigest()


def test_same_seed_same_scene():
    a, b = draw_scene(7), draw_scene(7)
    assert a.image.tobytes() == b.image.tobytes() and len(a.things) == len(b.things)
    for one, other in zip(a.things, b.things, strict=True):
        assert (one.name, one.texture, one.centre, one.size) == (other.name, other.texture, other.centre, other.size)
        assert np.array_equal(one.mask, other.mask)


def test_splits_share_no_seed_and_no_picture():
    for one, other in combinations(SPLIT_SEEDS.values(), 2):
        assert max(one[0], other[0]) > min(one[-1], other[-1])
    hashes = {split: {digest(seed) for seed in seeds[:50]} for split, seeds in SPLIT_SEEDS.items()}
    assert all(len(found) == 50 for found in hashes.values())
    assert len(set().union(*hashes.values())) == 50 * len(SPLIT_SEEDS)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_scene_invariants(seed):
    scene = draw_scene(seed)
    assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
    assert 3 <= len(scene.things) <= 6
    assert np.sum([thing.mask for thing in scene.things], axis=0).max() == 1  # disjoint
    for thing in scene.things:
        assert thing.name in NAMES and thing.texture in TEXTURES and thing.mask.dtype == np.bool_
        whole = np.zeros((96, 96), bool)
        window, coverage = silhouette(thing.shape, thing.centre, thing.size, thing.angle, 96)
        whole[window] = coverage >= 0.5
        assert not (thing.mask & ~whole).any()
        assert thing.mask.sum() >= max(60, VISIBLE_SHARE * whole.sum() - 2)  # pixels at exactly one half


def test_front_thing_is_whole():
    for seed in range(30):
        thing = draw_scene(seed).things[-1]
        window, coverage = silhouette(thing.shape, thing.centre, thing.size, thing.angle, 96)
        assert thing.mask.sum() == (coverage >= 0.5).sum() == thing.mask[window].sum()


def test_mask_shows_the_colour():
    for seed in range(20):
        for thing in (thing for thing in draw_scene(seed).things if thing.texture == "plain"):
            mean = draw_scene(seed).image[thing.mask].mean(0)
            distance = {colour: np.abs(mean - rgb).sum() for colour, rgb in COLOURS.items()}
            assert min(distance, key=distance.get) == thing.colour


@pytest.mark.parametrize("shape", SHAPES)
def test_centroid_and_reach(shape):
    window, coverage = silhouette(shape, (100.0, 90.0), 100.0, 0.3, 200)
    rows, columns = np.mgrid[window]
    assert np.average(columns + 0.5, weights=coverage) == pytest.approx(100, abs=0.6)
    assert np.average(rows + 0.5, weights=coverage) == pytest.approx(90, abs=0.6)
    farthest = np.hypot(columns + 0.5 - 100, rows + 0.5 - 90)[coverage >= 0.5].max() / 50
    assert SHAPES[shape][0] - 0.04 <= farthest <= SHAPES[shape][0]


def test_ball_area():
    _, coverage = silhouette("ball", (50.0, 50.0), 40.0, 0.0, 100)
    assert coverage.sum() == pytest.approx(np.pi * 20**2, rel=0.002)


def test_twins_are_rare_and_features_are_shared_often():
    scenes = [[thing.name for thing in draw_scene(seed).things] for seed in range(300)]
    assert 0.01 < np.mean([len(set(names)) < len(names) for names in scenes]) < 0.09
    for part in (0, 1):
        assert np.mean([len({name.split()[part] for name in names}) < len(names) for names in scenes]) > 0.5


def test_size_scales():
    scene = draw_scene(3, size=192)
    assert scene.image.shape == (192, 192, 3)
    assert min(thing.mask.sum() for thing in scene.things) >= 240


def test_all_shapes_and_colours_appear():
    things = [thing for seed in range(40) for thing in draw_scene(seed).things]
    assert {t.shape for t in things} == set(SHAPES) and {t.colour for t in things} == set(COLOURS)
    assert {t.texture for t in things} == set(TEXTURES)


@pytest.mark.parametrize("arguments", [(-1, 96), (0, 47)])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="scene: seed"):
        draw_scene(*arguments)


def test_unknown_shape():
    with pytest.raises(KeyError):
        silhouette("teapot", (0.0, 0.0), 10.0, 0.0, 96)
