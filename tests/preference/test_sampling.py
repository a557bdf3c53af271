"""Seeds and noise rectangles: reproducible, inside the picture, of the asked size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.preference.sampling import (
    NoiseRectangle,
    branch_points,
    circle_offsets,
    item_seed,
    noise_rectangle,
    shifted,
)

few = settings(max_examples=60, deadline=None, derandomize=True)


def test_item_seeds_are_stable_and_apart():
    """Another machine or version must mine the same views: half of sha256("0␟scene-1␟2")'s first 8 bytes."""
    assert item_seed(0, "scene-1", 2) == item_seed(0, "scene-1", 2)
    found = {item_seed(seed, name, k) for seed in range(3) for name in ("a", "b", "ab") for k in range(5)}
    assert len(found) == 45 and all(0 <= seed < 2**63 for seed in found)
    assert item_seed(1, "2", "3") != item_seed(12, "3") != item_seed(1, "23")
    assert item_seed(0, "scene-1", 2) == 4796309357577072723


@few
@given(st.integers(0, 2**62), st.floats(0.01, 0.4), st.floats(0, 0.09), st.floats(0.01, 2))
def test_rectangles_lie_inside_and_cover_the_asked_share(seed, area, extra, sigma):
    rectangle = noise_rectangle(seed, area, area + extra, sigma)
    assert rectangle == noise_rectangle(seed, area, area + extra, sigma)
    assert area - 1e-9 <= rectangle.width * rectangle.height <= area + extra + 1e-9
    assert rectangle.left >= 0 and rectangle.left + rectangle.width <= 1 + 1e-9
    assert rectangle.top >= 0 and rectangle.top + rectangle.height <= 1 + 1e-9
    assert rectangle.sigma == sigma


@few
@given(st.integers(0, 2**62), st.floats(0.5, 0.95))
def test_large_rectangles_cover_the_asked_share_too(seed, area):
    rectangle = noise_rectangle(seed, area, area, 0.5)
    assert rectangle.width * rectangle.height == pytest.approx(area)


def test_rectangles_vary():
    found = [noise_rectangle(seed, 0.08, 0.15, 0.5) for seed in range(200)]
    ratios = [r.width / r.height for r in found]
    assert min(ratios) < 0.6 and max(ratios) > 1.7 and len({r.seed for r in found}) == 200
    assert min(r.left for r in found) < 0.05 and max(r.left + r.width for r in found) > 0.95


@pytest.mark.parametrize("areas", [(0, 0.1), (0.2, 0.1), (0.1, 1.0), (-0.1, 0.1)])
def test_impossible_areas(areas):
    with pytest.raises(ValueError, match=r"noise rectangle: area .* must lie in \(0, 1\)"):
        noise_rectangle(0, *areas, 0.5)


def test_impossible_noise():
    with pytest.raises(ValueError, match="sigma 0 above 0"):
        noise_rectangle(0, 0.1, 0.2, 0)


def test_noise_is_inside_the_rectangle_only():
    """Left 1/4, top 1/2, width 1/2, height 1/4 of 40 × 80 pixels: rows 20 … 29, columns 20 … 59."""
    picture = np.full((40, 80, 3), 128, np.uint8)
    view = NoiseRectangle(0.25, 0.5, 0.5, 0.25, sigma=0.2, seed=3).apply(picture)
    changed = (view != picture).any(-1)
    inside = np.zeros((40, 80), bool)
    inside[20:30, 20:60] = True
    assert not changed[~inside].any() and changed[inside].mean() > 0.99
    assert (picture == 128).all() and view.dtype == np.uint8
    assert float(view[inside].std()) == pytest.approx(0.2 * 255, rel=0.1)  # σ = 51, few values are clipped


def test_the_same_recipe_gives_the_same_view():
    picture = np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8)
    recipe = noise_rectangle(5, 0.08, 0.15, 0.5)
    assert (recipe.apply(picture) == recipe.apply(picture)).all()
    assert (recipe.apply(picture) != noise_rectangle(6, 0.08, 0.15, 0.5).apply(picture)).any()


@few
@given(st.integers(0, 2**62), st.integers(2, 40), st.integers(2, 40))
def test_pictures_of_any_size(seed, height, width):
    picture = np.full((height, width, 3), 128, np.uint8)
    view = noise_rectangle(seed, 0.08, 0.15, 1.0).apply(picture)
    assert view.shape == picture.shape and (view != picture).any()


def test_branch_points_are_the_likeliest_ways_out():
    """Token 0 said twice, p = 0.6 and 0.9: leave at once for 1 (0.3) or for 2 (0.1), or later for 1 (0.6 · 0.08)."""
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.9, 0.08, 0.02]]).log()
    found = branch_points(logits, torch.tensor([0, 0]), 3, 1e-6)
    assert [(p.kept, p.token) for p in found] == [(0, 1), (0, 2), (1, 1)]
    assert [np.exp(p.logp) for p in found] == pytest.approx([0.3, 0.1, 0.048])
    assert branch_points(logits, torch.tensor([0, 0]), 3, 0.2) == found[:1]
    assert branch_points(logits, torch.tensor([0, 0]), 0, 1e-6) == []


@few
@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 8), st.integers(0, 2**31))
def test_branches_never_repeat_what_was_said(length, words, count, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(length, words, generator=generator)
    ids = torch.randint(words, (length,), generator=generator)
    found = branch_points(logits, ids, count, 1e-9)
    assert len(found) <= count and all(p.token != ids[p.kept] for p in found)
    assert len({(p.kept, p.token) for p in found}) == len(found)
    assert [p.logp for p in found] == sorted((p.logp for p in found), reverse=True)


def test_offsets_lie_on_a_circle():
    assert circle_offsets(0, 3.0) == []
    assert np.round(circle_offsets(4, 3.0), 6).tolist() == [[3, 0], [0, 3], [-3, 0], [0, -3]]


def test_a_shifted_picture_repeats_its_edge():
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert shifted(picture, 1, 0)[..., 0].tolist() == [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]
    assert shifted(picture, -1, 2)[..., 0].tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [1, 2, 3, 3]]
    assert np.array_equal(shifted(picture, 0, 0), picture)
    assert shifted(picture, 9, -9)[..., 0].tolist() == [[8] * 4] * 3
