"""Dusk by its own equations: dim, bluer, noisier the less light there is."""

import numpy as np
import pytest

from popen.data.dusk import CAST, at_dusk

GREY = np.full((64, 64, 3), 200, np.uint8)


def test_light_and_cast():
    """A grey wall keeps its share of the light in every channel, and its noise is that of the counted photons."""
    dim = at_dusk(GREY, seed=0, light=0.3, blur=0).astype(float)
    for channel, cast in enumerate(CAST):
        signal = 200 / 255 * 0.3 * cast
        assert dim[..., channel].mean() == pytest.approx(255 * signal, rel=0.03)
        assert dim[..., channel].std() == pytest.approx(255 * np.sqrt(signal / 100 + 0.02**2), rel=0.05)


def test_a_seed_is_a_picture():
    assert np.array_equal(at_dusk(GREY, 1), at_dusk(GREY, 1)) and not np.array_equal(
        at_dusk(GREY, 1), at_dusk(GREY, 2)
    )


def test_blur_is_of_the_scene_not_of_the_noise():
    """An edge is spread over several pixels."""
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    sharp, soft = (at_dusk(edge, 0, light=1.0, blur=b)[..., 0].mean(0) for b in (0, 3))
    assert sharp[28] < 10 < soft[28]


@pytest.mark.parametrize("bad", [{"light": 0}, {"light": 1.1}, {"blur": -1}])
def test_out_of_range(bad):
    with pytest.raises(ValueError, match="give light in"):
        at_dusk(GREY, 0, **bad)
