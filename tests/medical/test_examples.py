"""Views, augmentation, pairs and batches of medical examples."""

from dataclasses import replace

import pytest
import torch

from popen.medical.augmentation import FAR, augmented, random_affine
from popen.medical.cohort import Prepared
from popen.medical.examples import Collator, Example, Streams
from popen.medical.loss_choices import LossArguments, supervised_of
from popen.medical.mask_pairs import with_reference
from popen.medical.samplers import (
    checkpoint_hypotheses,
    flip_hypotheses,
    probabilities_of,
    threshold_hypotheses,
)
from popen.medical.supervised import Labelled
from popen.medical.views import flip_views, flipped, flipped_rows


class Sloped(torch.nn.Module):
    """Logits that depend on where a pixel is, so that no flip leaves them alone."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, pictures):
        slope = torch.arange(float(pictures.shape[-1])) + 10 * torch.arange(float(pictures.shape[-2]))[:, None]
        return pictures[:, :1] * self.weight + slope


@pytest.fixture
def pictures():
    return torch.rand(3, 2, 4, 6, generator=torch.Generator().manual_seed(0))


def test_views_are_all_flips_and_undo_themselves(pictures):
    views = flip_views(2)
    assert views == ((), (-2,), (-1,), (-2, -1)) and len(flip_views(3)) == 8
    for view in views:
        torch.testing.assert_close(flipped(flipped(pictures, view), view), pictures)
    rows = flipped_rows(pictures, [(), (-1,), (-2, -1)])
    torch.testing.assert_close(rows[1], pictures[1].flip(-1))
    torch.testing.assert_close(rows[2], pictures[2].flip(-2, -1))


def test_flip_hypotheses_lie_on_the_pictures_grid(pictures):
    network = Sloped()
    found = flip_hypotheses(network, pictures, ((), (-1,)))
    assert found.shape == (3, 2, 1, 4, 6)
    torch.testing.assert_close(found[:, 0], network(pictures))
    torch.testing.assert_close(found[:, 1], network(pictures.flip(-1)).flip(-1))


def test_thresholds_and_checkpoints(pictures):
    network = Sloped()
    cut = threshold_hypotheses(network, pictures, (-1.0, 0.0, 2.0), "sigmoid")
    torch.testing.assert_close(cut[:, 2] - cut[:, 0], torch.full_like(cut[:, 0], 3.0))
    torch.testing.assert_close(checkpoint_hypotheses([network, network], pictures)[:, 1], network(pictures))


def test_thresholds_of_classes_leave_the_background():
    """Raised together with the background, no class would ever win a pixel more."""
    logits = torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1)
    found = threshold_hypotheses(torch.nn.Identity(), logits, (0.0, 1.0), "softmax")
    assert found[0, :, :, 0, 0].argmax(1).tolist() == [0, 1]


def test_probabilities_of_hypotheses():
    logits = torch.tensor([0.0, 100.0]).reshape(1, 2, 1, 1, 1)
    assert probabilities_of(logits, "sigmoid").mean(1).item() == pytest.approx(0.75)
    two = torch.tensor([[0.0, 0.0], [100.0, 0.0]]).reshape(1, 2, 2, 1, 1)
    assert probabilities_of(two, "softmax").mean(1).flatten().tolist() == pytest.approx([0.75, 0.25])


def test_every_view_has_reference_logits_of_its_own(pictures):
    network, views = Sloped().eval(), flip_views(2)
    chosen, rejected = torch.rand(1, 4, 6) > 0.5, torch.rand(1, 4, 6) > 0.5
    pair = with_reference(network, "sigmoid", [pictures[0]], [(chosen, rejected, 0.2)], views)[0]
    assert pair.reference.shape == (4, len(pair.index)) and pair.gap == 0.2
    for number, view in enumerate(views):
        again = flipped(network(flipped(pictures[:1], view)), view)
        torch.testing.assert_close(pair.reference[number], again.flatten()[pair.index])
    assert torch.equal(pair.sign.bool(), torch.ones_like(pair.sign).bool())
    assert torch.equal(chosen.flatten()[pair.index], pair.sign > 0)


@pytest.mark.parametrize("shape", [(5, 8, 8), (2, 6, 8, 8)])
def test_augmentation_moves_masks_and_maps_with_the_picture(shape):
    torch.manual_seed(3)
    masks = torch.zeros(1, *shape[1:]).bool()
    masks[..., 2:6, 2:6] = True
    picture = masks.float().expand(shape).contiguous()
    moved, found, distance = augmented(picture, masks, masks.float() * 7)
    assert moved.shape == shape and found.dtype == torch.bool and found.shape == masks.shape
    inside = moved[:1][found].mean() - moved[:1][~found].mean()
    assert inside > 0.5  # the picture is bright where the mask is, wherever both went
    torch.testing.assert_close(distance / 7 > 0.5, found)


def without_boundary(dims, count):
    """Labelled cases with a region that is empty, one that is full and, for scale, one that is neither."""
    picture, masks = torch.randn(1, *(6,) * dims), torch.zeros(3, *(6,) * dims).bool()
    masks[1], masks[2, ..., 2:5] = True, True
    case = Prepared("c", picture, masks, (1.0,) * dims, "p")
    return Streams([case.example(distance=True)] * count, [], flip_views(dims))


@pytest.mark.parametrize("dims", [2, 3])
def test_what_has_no_boundary_is_far_from_it_wherever_it_is_moved(dims):
    """Infinity times a weight of 0 is no number, and interpolation has such weights."""
    torch.manual_seed(0)
    streams = without_boundary(dims, 20)
    for (example, _), *_ in (streams[i] for i in range(20)):
        empty, full, region = example.distance
        torch.testing.assert_close(empty, torch.full_like(empty, -FAR))
        torch.testing.assert_close(full, torch.full_like(full, FAR))
        assert region.abs().max() < 6


@pytest.mark.parametrize("name", ["fuzzy", "intuitionistic", "pareto", "epsilon_constraint"])
@pytest.mark.parametrize("dims", [2, 3])
def test_losses_of_distances_learn_from_augmented_pictures_without_a_boundary(dims, name):
    """The labels there are 0 and 1, all of it interior: at zero logits ln 2, whatever the band."""
    torch.manual_seed(1)
    streams = without_boundary(dims, 8)
    batch = Collator(streams.views)([streams[i] for i in range(8)])
    logits = torch.zeros(batch["true_masks"].shape, requires_grad=True)
    args = LossArguments(supervised=name, band=2.0)
    for regions in (slice(0, 1), slice(1, 2)):
        alone = (logits[:, regions],), batch["true_masks"][:, regions], batch["distance"][:, regions]
        loss = supervised_of(args, "sigmoid")
        parts = loss(Labelled(*alone, None, 0.8))
        interior = parts.get("interior", parts.get("ce"))
        assert interior.item() == pytest.approx(torch.tensor(2.0).log().item())
        assert parts.get("boundary", torch.zeros(())).item() == 0
        (slope,) = torch.autograd.grad(sum(parts.values()), logits)
        assert torch.equal(slope[:, regions] > 0, ~batch["true_masks"][:, regions])


@pytest.mark.parametrize("dims", [2, 3])
def test_random_affines_are_rotations_zoomed(dims):
    torch.manual_seed(0)
    for _ in range(20):
        matrix = random_affine(dims)
        square = matrix[:, :-1] @ matrix[:, :-1].T
        torch.testing.assert_close(square, torch.eye(dims) * square[0, 0], atol=1e-5, rtol=0)
        assert 0.6 < square[0, 0] < 1.6 and matrix[:, -1].abs().max() <= 0.1


def test_a_batch_has_truths_and_pairs_by_row(pictures):
    network, views = Sloped().eval(), flip_views(2)
    masks = pictures[:, :1] > 0.5
    pairs = with_reference(
        network, "sigmoid", list(pictures[1:]), [(masks[1], masks[0], 0.1), (masks[2], masks[0], 0.3)], views
    )
    pairs[1] = replace(pairs[1], weight=0.25)
    streams = Streams(
        [Example(pictures[0], masks[0])], [Example(pictures[i + 1], None, p) for i, p in enumerate(pairs)], views
    )
    assert len(streams) == 2
    batch = Collator(views)([streams[0], streams[1]])
    assert batch["pictures"].shape == (4, 2, 4, 6)
    assert batch["true_row"].tolist() == [0, 2] and batch["pair_row"].tolist() == [1, 3]
    assert batch["region_index"].shape == batch["region_sign"].shape == batch["region_reference"].shape
    assert batch["weight"].tolist() == [1.0, 0.25]
    assert batch["gap"].tolist() == pytest.approx([0.1, 0.3]) and batch["entries"] == 1
    shown = flipped_rows(batch["pictures"], [views[v] for v in batch["views"].tolist()])
    torch.testing.assert_close(shown[1], pictures[1])  # pairs are not augmented


def test_no_labelled_example_is_an_error():
    with pytest.raises(ValueError, match="no labelled example"):
        Streams([], [], flip_views(2))
