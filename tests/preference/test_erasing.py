"""What is erased looks like its surroundings, and nothing else changes."""

import numpy as np
import pytest

from popen.preference.erasing import erased


@pytest.fixture
def picture():
    """A noisy grey wall with a red square, 96 × 96, and the square's mask."""
    wall = np.clip(np.random.default_rng(0).normal((90, 100, 110), 8, (96, 96, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros((96, 96), bool)
    mask[40:60, 40:60] = True
    wall[mask] = (250, 0, 0)
    return wall, mask


def test_the_thing_is_gone(picture):
    """Its pixels have the wall's colour and noise; three pixels around it (a 32nd of 96) are redrawn, others kept."""
    wall, mask = picture
    view = erased(wall, mask, seed=1)
    inside = view[mask].astype(float)
    np.testing.assert_allclose(inside.mean(0), (90, 100, 110), atol=2)
    np.testing.assert_allclose(inside.std(0), 8, rtol=0.25)
    changed = (view != wall).any(-1)
    assert changed[37, 50] and not changed[:36].any() and not changed[:, 64:].any()
    assert np.array_equal(view, erased(wall, mask, 1)) and not np.array_equal(view, erased(wall, mask, 2))


def test_a_neighbour_does_not_colour_the_fill(picture):
    """A green thing beside it fills a fifth of the ring: the median does not see it."""
    wall, mask = picture
    wall[38:62, 64:] = (0, 250, 0)
    np.testing.assert_allclose(erased(wall, mask, 0)[mask].astype(float).mean(0), (90, 100, 110), atol=6)


def test_an_empty_mask_changes_nothing(picture):
    wall, mask = picture
    assert np.array_equal(erased(wall, ~mask & mask, 0), wall)


def test_the_whole_picture_can_be_erased(picture):
    """What is left is a wall: the thing on it is a twentieth of the pixels, and the median does not see it."""
    wall, mask = picture
    view = erased(wall, mask | True, 0).astype(float)
    np.testing.assert_allclose(view.reshape(-1, 3).mean(0), (90, 100, 110), atol=2)
    assert abs(view[mask].mean() - view[~mask].mean()) < 1


def test_another_size_is_refused(picture):
    with pytest.raises(ValueError, match="one size"):
        erased(picture[0], picture[1][:50], 0)
