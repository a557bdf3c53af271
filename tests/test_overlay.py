"""Masks drawn over a picture, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from popen.overlay import PALETTE, draw_masks

GREY = (100, 100, 100)


@pytest.fixture
def picture():
    return Image.new("RGB", (20, 12), GREY)


def box(top, bottom, left, right, shape=(12, 20)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_without_masks_the_picture_is_as_it_was(picture):
    assert (np.asarray(draw_masks(picture, [])) == np.asarray(picture)).all()


def test_inside_tinted_edge_solid_outside_untouched(picture):
    """Red is (230, 25, 75); tinted by 0.45: 100 + 0.45 · 130 = 158.5, 100 − 33.75, 100 − 11.25, rounded."""
    mask = box(2, 9, 3, 12)
    pixels = np.asarray(draw_masks(picture, [mask]))
    inner = box(3, 8, 4, 11)
    assert (pixels[~mask] == GREY).all()
    assert (pixels[mask & ~inner] == PALETTE[0]).all()
    assert (pixels[inner] == (158, 66, 89)).all()


def test_a_mask_to_the_border_has_its_line_there(picture):
    pixels = np.asarray(draw_masks(picture, [np.ones((12, 20), bool)]))
    assert (pixels[0] == PALETTE[0]).all() and (pixels[:, -1] == PALETTE[0]).all()


def test_every_target_has_its_colour_and_they_start_over(picture):
    masks = [box(0, 1, i, i + 1) for i in range(8)]
    pixels = np.asarray(draw_masks(picture, masks))
    assert [tuple(pixels[0, i]) for i in range(8)] == [*PALETTE, PALETTE[0]]


def test_enlarged(picture):
    mask = box(2, 9, 3, 12)
    large = draw_masks(picture, [mask], scale=3)
    assert large.size == (60, 36)
    assert (np.asarray(large)[~mask.repeat(3, 0).repeat(3, 1)] == GREY).all()


def test_an_empty_mask_draws_nothing_and_grey_pictures_work():
    grey = Image.new("L", (20, 12), 7)
    assert (np.asarray(draw_masks(grey, [np.zeros((12, 20), bool)])) == 7).all()


def test_the_picture_given_is_not_changed(picture):
    draw_masks(picture, [np.ones((12, 20), bool)])
    assert picture.getpixel((0, 0)) == GREY
