"""A gallery encodes a picture once and gives every row its own."""

import pytest
import torch
from PIL import Image

from popen.data.safe_io import DataError
from popen.lvlm.gallery import Gallery


def test_rows_are_about_their_pictures_whatever_was_shown_before(taught, samples):
    gallery, (red, blue, green) = Gallery(*taught), (sample.image for sample in samples[:3])
    gallery.show([blue], [0])
    shown = gallery.show([red, blue, red, green], [0, 1, 2, 3])
    assert (
        shown.rows == [0, 1, 0, 2] and [(canvas.width, canvas.height) for canvas in shown.canvases] == [red.size] * 3
    )
    for place, image in enumerate((red, blue, green)):
        alone = Gallery(*taught).show([image], [0]).pictures
        torch.testing.assert_close(shown.pictures.language[place], alone.language[0], atol=1e-5, rtol=1e-4)
        for level, own in zip(shown.pictures.features, alone.features, strict=True):
            torch.testing.assert_close(level[place], own[0], atol=1e-5, rtol=1e-4)


def test_a_picture_that_cannot_be_used_is_named(taught):
    with pytest.raises(DataError, match="image 7: 1x5, both sides"):
        Gallery(*taught).show([Image.new("RGB", (1, 5))], [7])
