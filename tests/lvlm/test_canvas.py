"""The canvas: pictures of every shape in, masks at the picture's own size out."""

import numpy as np
import pytest
import torch
from PIL import Image

from popen.lvlm.canvas import Canvas

GREY = (124, 116, 104)
SIZES = [(48, 96), (96, 48), (96, 96), (200, 100), (150, 640), (2, 2), (3, 7), (1200, 900)]


def box_mask(height, width):
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 4 + max(height // 2, 1), width // 3 : width // 3 + max(width // 2, 1)] = True
    return mask


@pytest.mark.parametrize(
    "size, scaled",
    [
        ((48, 96), (48, 96)),
        ((200, 100), (96, 48)),
        ((100, 300), (32, 96)),
        ((64, 64), (96, 96)),
        ((2, 2), (96, 96)),
        ((5000, 2), (96, 1)),  # 2 · 96 / 5000 rounds to 0: a picture keeps at least one column
    ],
)
def test_fit(size, scaled):
    canvas = Canvas.fit(*size, 96)
    assert (canvas.height, canvas.width, canvas.side) == (*size, 96)
    assert (canvas.scaled_height, canvas.scaled_width) == scaled


@pytest.mark.parametrize("height, width", SIZES)
def test_place_pads_right_and_below_with_grey(height, width):
    canvas = Canvas.fit(height, width, 96)
    square = np.asarray(canvas.place(Image.new("RGB", (width, height), (255, 0, 0))))
    assert square.shape == (96, 96, 3)
    assert (square[: canvas.scaled_height, : canvas.scaled_width] == (255, 0, 0)).all()
    assert (square[canvas.scaled_height :] == GREY).all() and (square[:, canvas.scaled_width :] == GREY).all()


def test_a_picture_that_fits_is_not_resampled():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 96, 3), np.uint8)
    square = np.asarray(Canvas.fit(40, 96, 96).place(Image.fromarray(pixels)))
    assert (square[:40] == pixels).all()


@pytest.mark.parametrize("height, width", SIZES)
def test_a_full_mask_covers_the_picture_and_never_the_padding(height, width):
    canvas = Canvas.fit(height, width, 96)
    placed = canvas.place_masks(np.ones((2, height, width), bool))
    inside = canvas.valid(np.zeros((height, width), bool))
    assert placed.shape == (2, 96, 96) and inside.dtype == torch.bool
    assert inside.sum() == canvas.scaled_height * canvas.scaled_width
    torch.testing.assert_close(placed, inside.float().expand(2, -1, -1))


def test_placed_area_is_the_covered_fraction():
    """A block of 8 × 12 pixels at a quarter of the size covers 2 × 3 canvas pixels, edges may be soft."""
    mask = np.zeros((1, 384, 384), bool)
    mask[0, 40:48, 80:92] = True
    placed = Canvas.fit(384, 384, 96).place_masks(mask)
    assert placed.sum() == pytest.approx(6, rel=1e-4)
    assert placed[0, 10:12, 20:23].sum() > 4


def test_place_masks_without_masks():
    assert Canvas.fit(10, 20, 96).place_masks(np.zeros((0, 10, 20), bool)).shape == (0, 96, 96)


def test_ignored_pixels_do_not_count():
    ignore = np.zeros((48, 96), bool)
    ignore[:, :30] = True
    valid = Canvas.fit(48, 96, 96).valid(ignore)
    assert valid.sum() == 48 * 66 and not valid[:, :30].any() and not valid[48:].any()


@pytest.mark.parametrize("height, width", SIZES)
def test_a_mask_comes_back_at_its_own_size(height, width):
    """Up to the pixels that the scale blurs: at most one picture pixel, or one canvas pixel, along the outline."""
    canvas, mask = Canvas.fit(height, width, 96), box_mask(height, width)
    placed = canvas.place_masks(mask[None])
    restored = (canvas.restore((placed - 0.5) * 20) > 0).numpy()
    assert restored.shape == (1, height, width)
    if max(height, width) == 96:
        assert (restored[0] == mask).all()
    outline = 2 * (mask.any(0).sum() + mask.any(1).sum())
    assert (restored[0] != mask).sum() <= outline * max(1, max(height, width) / 96) / 2


@pytest.mark.parametrize("height, width", [(48, 96), (200, 100), (150, 640)])
def test_what_is_said_about_the_padding_is_not_heard(height, width):
    canvas = Canvas.fit(height, width, 96)
    logits = torch.randn(1, 96, 96, generator=torch.Generator().manual_seed(0))
    loud = logits.clone()
    loud[:, ~canvas.valid(np.zeros((height, width), bool))] = 1e4
    assert torch.equal(canvas.restore(logits), canvas.restore(loud))


def test_restore_from_the_decoders_grid():
    """The top half of a coarse grid is the top half of a square picture, and nothing of a picture in the top half."""
    logits = torch.full((1, 48, 48), -5.0)
    logits[:, :24] = 5.0
    square = Canvas.fit(192, 192, 96).restore(logits) > 0
    assert square[:, :96].all() and not square[:, 96:].any()
    assert (Canvas.fit(80, 192, 96).restore(logits) > 0).all()


def test_restore_without_masks():
    assert Canvas.fit(80, 192, 96).restore(torch.zeros(0, 48, 48)).shape == (0, 80, 192)
