"""To the network's grid and back: nothing moves, masks come back as they were, and the scale is what it says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.data.medical_case import Case
from popen.data.safe_io import DataError
from popen.medical.transforms import GridRecord, Preprocessing


def case(image, masks=None, spacing=None):
    image = np.asarray(image, np.float32)
    return Case("c", "p", image, masks, spacing or (1.0,) * (image.ndim - 1))


def logits_of(masks):
    return masks.float() * 2 - 1


def places(size, axis, spacing):
    """mm from the edge of the picture to the centre of each voxel along an axis, as a picture."""
    shape = [1] * len(size)
    shape[axis] = -1
    return np.broadcast_to(((np.arange(size[axis]) + 0.5) * spacing[axis]).reshape(shape), size).astype(np.float32)


@pytest.mark.parametrize(
    "size, spacing, target",
    [
        ((12, 10), (1.0, 2.0), (2.0, 1.0)),
        ((12, 10, 8), (1.0, 1.0, 2.0), (1.0, 1.0, 1.0)),
        ((12, 10, 8), (0.7, 0.7, 3.0), (1.5, 1.5, 1.5)),
    ],
)
def test_voxels_stay_where_they_are_in_the_patient(size, spacing, target):
    """A picture of its own coordinates holds, resampled, those of the new voxels, and on the way back its own."""
    step = Preprocessing((1,) * len(size), target, "8-bit")
    for axis in range(len(size)):
        own = places(size, axis, spacing)
        picture, record = step.apply(case(own[None], None, spacing))
        assert record.resampled == tuple(round(n * s / t) for n, s, t in zip(size, spacing, target, strict=True))
        steps = [n * s / new for n, s, new in zip(size, spacing, record.resampled, strict=True)]
        there, back = picture[0].numpy() * 255, step.undo(picture * 255, record)[0].numpy()
        for found, expected in ((there, places(record.resampled, axis, steps)), (back, own)):
            found, expected = (np.moveaxis(array, axis, 0) for array in (found, expected))
            margin = len(expected) // 3  # at the edge there is no neighbour beyond
            inner = slice(margin, len(expected) - margin)
            assert np.allclose(found[inner], expected[inner], atol=1e-3)


@pytest.mark.parametrize("size, canvas", [((5, 6), (9, 8)), ((5, 6, 4), (8, 8, 8)), ((5, 6, 4), (4, 7, 4))])
def test_padding_is_undone_to_the_voxel(size, canvas):
    rng = np.random.default_rng(0)
    image, masks = rng.normal(size=(2, *size)), rng.random((3, *size)) > 0.5
    step = Preprocessing(canvas)
    picture, record = step.apply(case(image, masks))
    assert tuple(picture.shape[1:]) == record.final == tuple(map(max, size, canvas))
    padded = step.apply_masks(masks, record)
    assert padded.dtype == torch.bool and padded.shape[1:] == picture.shape[1:] and padded.sum() == masks.sum()
    assert (step.undo(logits_of(padded), record).numpy() > 0).tolist() == masks.tolist()
    own = (slice(None), *(slice(b, b + n) for b, n in zip(record.before, size, strict=True)))
    assert torch.equal(step.undo(picture, record), picture[own])
    assert picture.abs().sum() == pytest.approx(picture[own].abs().sum().item())  # zeros around it


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 7), min_size=2, max_size=3), st.integers(1, 3), st.integers(0, 1000))
def test_a_mask_comes_back_from_a_finer_grid_as_it_was(size, times, seed):
    """Each axis is refined by a factor of its own, as anisotropic spacing has it."""
    masks = np.random.default_rng(seed).random((2, *size)) > 0.5
    factors = [1 + (axis * times) % 4 for axis in range(len(size))]
    step = Preprocessing((16,) * len(size), (1.0,) * len(size))
    _, record = step.apply(case(np.zeros((1, *size)), masks, tuple(map(float, factors))))
    assert record.resampled == tuple(n * f for n, f in zip(size, factors, strict=True))
    back = step.undo(logits_of(step.apply_masks(masks, record)), record)
    assert (back.numpy() > 0).tolist() == masks.tolist()


def test_a_mask_comes_back_from_a_coarser_grid_nearly():
    distance = np.linalg.norm(np.indices((40, 40, 20)) - np.array([18, 22, 9]).reshape(3, 1, 1, 1), axis=0)
    ball = (distance < 8)[None]
    step = Preprocessing((32, 32, 16), (1.5, 1.5, 1.5))
    _, record = step.apply(case(np.zeros((1, 40, 40, 20)), ball))
    back = step.undo(logits_of(step.apply_masks(ball, record)), record).numpy() > 0
    assert 2 * (back & ball).sum() / (back.sum() + ball.sum()) > 0.9
    centres = [np.argwhere(mask[0]).mean(0) for mask in (ball, back)]
    assert np.abs(centres[0] - centres[1]).max() < 0.3  # voxels: no shift by half a one


def test_resizing_goes_to_one_size_and_back():
    image = np.zeros((3, 20, 30))
    image[:, 5:10, 12:24] = 255
    mask = image[:1] > 0
    step = Preprocessing((16, 16), scale="8-bit", fit="resize")
    picture, record = step.apply(case(image, mask))
    assert picture.shape == (3, 16, 16) and record.before == (0, 0)
    assert picture.mean() == pytest.approx(image.mean() / 255, abs=0.005)  # shrinking averages and does not skip
    small = step.apply_masks(mask, record)
    assert small.shape == (1, 16, 16) and small[0, 5, 8] and not small[0, 0, 0]
    assert step.undo(logits_of(small), record).shape == (1, 20, 30)


def test_shrinking_averages_what_it_covers():
    """One bright voxel in four becomes a quarter everywhere; picking voxels would give nothing of it."""
    for axis in (1, 2, 3):
        stripes = np.moveaxis(np.tile([1.0, 0, 0, 0], (1, 3, 3, 6)), 3, axis)
        target = [1.0] * 3
        target[axis - 1] = 4.0
        picture, record = Preprocessing((1, 1, 1), tuple(target), "8-bit").apply(case(stripes))
        assert record.resampled[axis - 1] == 6
        assert np.allclose(picture.narrow(axis, 1, 4).numpy() * 255, 0.25, atol=0.01)


def test_one_hot_masks_stay_one_hot_and_the_padding_is_background():
    labels = np.random.default_rng(0).integers(0, 3, (6, 7, 5))
    masks = np.stack([labels == k for k in range(3)])
    step = Preprocessing((16, 16, 16), (0.7, 1.3, 0.5))
    _, record = step.apply(case(np.zeros((1, 6, 7, 5)), masks))
    made = step.apply_masks(masks, record)
    assert (made.sum(0) == 1).all() and made[0, 0, 0, 0]
    independent = masks[1:]
    assert not step.apply_masks(independent, record)[:, 0, 0, 0].any()
    assert torch.equal(step.apply_masks(independent, record), made[1:])


@pytest.mark.parametrize(
    "scale, expected",
    [
        ("z-score", [[-1, 1], [0, 0]]),  # mean 100, deviation 50; a channel of one value
        ("range", [[0, 1], [0, 0]]),
        ("8-bit", [[50 / 255, 150 / 255], [7 / 255, 7 / 255]]),
    ],
)
def test_scales(scale, expected):
    image = np.array([[[50, 150]] * 2, [[7, 7]] * 2])
    picture, _ = Preprocessing((2, 2), scale=scale).apply(case(image))
    assert torch.allclose(picture[:, 0], torch.tensor(expected, dtype=torch.float32))


def test_it_is_kept_beside_the_weights(tmp_path):
    for step in (Preprocessing((8, 8), fit="resize"), Preprocessing((8, 8, 8), (1.0, 1.0, 2.5), "range")):
        step.save_pretrained(tmp_path)
        assert Preprocessing.from_pretrained(tmp_path) == step


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no preprocessing.json in it, so how its pictures were prepared is unknown"),
        ("[]", "expected size, spacing, scale and fit"),
        ('{"size": [8, 8]}', "expected size, spacing, scale and fit"),
        ('{"size": 8, "spacing": null, "scale": "range", "fit": "pad"}', "size and spacing must be lists"),
        ('{"size": [8, 8], "spacing": ["1", 1], "scale": "range", "fit": "pad"}', "spacing must be numbers"),
        ('{"size": [8, "8"], "spacing": null, "scale": "range", "fit": "pad"}', "size (8, '8'); give 2 or 3"),
        ('{"size": [8, 8], "spacing": null, "scale": [], "fit": "pad"}', "give a scale of z-score, range, 8-bit"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "preprocessing.json").write_text(content)
    with pytest.raises(DataError) as caught:
        Preprocessing.from_pretrained(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((8,),), "give 2 or 3 positive whole numbers"),
        (((8, 0),), "give 2 or 3 positive whole numbers"),
        (((8, 8), (1.0,)), r"spacing \(1.0,\); give 2 positive numbers"),
        (((8, 8), (1.0, -1.0)), "give 2 positive numbers"),
        (((8, 8), (1.0, 1.0), "range", "resize"), "resizing to one size undoes it; leave one out"),
        (((8, 8), None, "zscore"), "scale 'zscore'"),
        (((8, 8), None, "range", "crop"), "fit one of pad, resize"),
    ],
)
def test_settings_that_do_not_fit(arguments, message):
    with pytest.raises(DataError, match=message):
        Preprocessing(*arguments)


def test_cases_and_masks_of_another_grid():
    step = Preprocessing((8, 8, 8), (1.0, 1.0, 1.0))
    with pytest.raises(DataError, match="c: 2-D, and the network takes 3-D pictures"):
        step.apply(case(np.zeros((1, 4, 4))))
    with pytest.raises(DataError, match=r"voxels at the spacing .*; crop it or coarsen that"):
        step.apply(case(np.zeros((1, 4, 4, 4)), None, (1e3, 1e3, 1e3)))
    record = GridRecord((4, 4, 4), (4, 4, 4), (2, 2, 2), (8, 8, 8))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4, 4\); give \(K, \*\(8, 8, 8\)\)"):
        step.undo(torch.zeros(1, 4, 4, 4), record)
    with pytest.raises(ValueError, match="the grid of the record"):
        step.apply_masks(np.zeros((1, 8, 8, 8), bool), record)
    with pytest.raises(ValueError, match="masks are uint8; give bool"):
        step.apply_masks(np.zeros((1, 4, 4, 4), np.uint8), record)
