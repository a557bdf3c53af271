"""Margins on the region alone against the dense ones, against policies of categorical pixels, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.objectives.preference import conservative_loss, hinge_loss, ipo_loss, robust_loss, sigmoid_loss
from popen.objectives.regions import (
    gather_region,
    independent_regions,
    one_hot_regions,
    region_margin,
    region_margin_class_mean,
    region_margin_image_mean,
    region_margin_power,
    region_margin_sum,
)
from popen.objectives.scores import mask_margin_image_mean, mask_margin_region_mean, mask_margin_sum

PIXELS = 20
NORMALISERS = {
    "sum": lambda z, ref, regions: region_margin_sum(z, ref, regions.sign),
    "image mean": lambda z, ref, regions: region_margin_image_mean(z, ref, regions.sign, PIXELS),
    "region mean": lambda z, ref, regions: region_margin(z, ref, regions.sign, regions.entries),
    "root": lambda z, ref, regions: region_margin_power(z, ref, regions.sign, 0.5, regions.entries),
    "class mean": lambda z, ref, regions: region_margin_class_mean(
        z, ref, regions.sign, regions.classes, regions.entries
    ),
}
LOSSES = {
    "sigmoid": lambda h: sigmoid_loss(h, 1.0),
    "hinge": lambda h: hinge_loss(h, 1.0),
    "ipo": lambda h: ipo_loss(h, 0.1),
    "cdpo": lambda h: conservative_loss(h, 1.0, 0.1),
    "rdpo": lambda h: robust_loss(h, 1.0, 0.1),
}
REGIONS = {"independent": independent_regions, "one-hot": one_hot_regions}
few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
shapes = st.sampled_from([(3, 4, 4, 5), (2, 3, 2, 5, 2)])


def close(actual, expected, **kwargs):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **kwargs)


def one_hot(labels, classes):
    return F.one_hot(labels, classes).movedim(-1, 1).bool()


def random_pairs(seed, shape, kind, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits, ref = (3 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    if kind == "independent":
        chosen, rejected = (torch.rand(shape, generator=generator) > 0.5 for _ in range(2))
    else:
        pixels = (shape[0], *shape[2:])
        chosen, rejected = (one_hot(torch.randint(shape[1], pixels, generator=generator), shape[1]) for _ in range(2))
    rejected[0] = chosen[0]  # a pair without a region is all padding
    return logits, ref, chosen, rejected


def sparse(name, logits, ref, regions):
    return NORMALISERS[name](gather_region(logits, regions.index), gather_region(ref, regions.index), regions)


# entries


def test_independent_entries_by_hand():
    """Two channels of three pixels. First pair: channel 0 differs at pixel 1 (+), channel 1 at 0 (−) and 2 (+).

    Flat places 1, 3, 5. Second pair: channel 1 at pixel 1 (−), place 4, then padding.
    """
    chosen = torch.tensor([[[1, 1, 0], [0, 1, 1]], [[0, 0, 0], [1, 0, 0]]]).bool()
    rejected = torch.tensor([[[1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0]]]).bool()
    regions = independent_regions(chosen, rejected)
    assert regions.index.tolist() == [[1, 3, 5], [4, 0, 0]]
    assert regions.sign.tolist() == [[1, -1, 1], [-1, 0, 0]]
    assert regions.classes.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert regions.entries == 1


def test_one_hot_entries_by_hand():
    """Three classes of two pixels, chosen (2, 1), rejected (0, 1): pixel 0 is +1 in class 2 and −1 in class 0.

    Places 0 (class 0, pixel 0) and 4 (class 2, pixel 0); both entries have the chosen mask's class 2.
    """
    regions = one_hot_regions(one_hot(torch.tensor([[2, 1]]), 3), one_hot(torch.tensor([[0, 1]]), 3))
    assert regions.index.tolist() == [[0, 4]]
    assert regions.sign.tolist() == [[-1, 1]]
    assert regions.classes.tolist() == [[2, 2]]
    assert regions.entries == 2


@few
@given(seeds, shapes, st.sampled_from(sorted(REGIONS)))
def test_entries_rebuild_the_difference_of_the_masks(seed, shape, kind):
    _, _, chosen, rejected = random_pairs(seed, shape, kind)
    regions = REGIONS[kind](chosen, rejected)
    rebuilt = torch.zeros(shape, dtype=torch.int8).flatten(1).scatter_add(1, regions.index, regions.sign)
    assert torch.equal(rebuilt.view(shape), chosen.to(torch.int8) - rejected.to(torch.int8))
    assert not regions.sign[0].any()


# margins


def test_margins_by_hand():
    """R has the gains s (z − z_ref) = (2, −1, 5, 6), classes (0, 0, 1, 1), and one padding entry.

    Sum 12; |Ω| = 24: 1/2; |R| = 4: mean 3, |R|^½: 6. Class means (2 − 1)/2 and (5 + 6)/2: 3.
    Taken as one-hot, |R| = 2: mean 6, |R|^½: 12/√2; class means 1 and 11: 6.
    """
    logits = torch.tensor([[2.0, 1.0, 5.0, -6.0, 9.0]])
    ref, sign = torch.zeros(1, 5), torch.tensor([[1, -1, 1, -1, 0]], dtype=torch.int8)
    classes = torch.tensor([[0, 0, 1, 1, 2]])
    close(region_margin_sum(logits, ref, sign), [12.0])
    close(region_margin_image_mean(logits, ref, sign, 24), [0.5])
    close(region_margin(logits, ref, sign), [3.0])
    close(region_margin_power(logits, ref, sign, 0.5), [6.0])
    close(region_margin_class_mean(logits, ref, sign, classes), [3.0])
    close(region_margin(logits, ref, sign, entries=2), [6.0])
    close(region_margin_power(logits, ref, sign, 0.5, entries=2), [12 / math.sqrt(2)])
    close(region_margin_class_mean(logits, ref, sign, classes, entries=2), [6.0])


def test_a_small_class_counts_as_much_as_a_large_one():
    """Nine entries of class 0 with gain 1, one of class 5 with gain −1: the mean is 0.8, the class mean 0."""
    logits, ref = torch.tensor([[1.0] * 9 + [-1.0]]), torch.zeros(1, 10)
    sign, classes = torch.ones(1, 10), torch.tensor([[0] * 9 + [5]])
    close(region_margin(logits, ref, sign), [0.8])
    close(region_margin_class_mean(logits, ref, sign, classes), [0.0])


@few
@given(seeds, shapes)
def test_independent_margins_are_the_dense_ones(seed, shape):
    logits, ref, chosen, rejected = random_pairs(seed, shape, "independent")
    regions = independent_regions(chosen, rejected)
    close(sparse("sum", logits, ref, regions), mask_margin_sum(logits, ref, chosen, rejected))
    close(sparse("region mean", logits, ref, regions), mask_margin_region_mean(logits, ref, chosen, rejected))
    gathered = gather_region(logits, regions.index), gather_region(ref, regions.index)
    image = region_margin_image_mean(*gathered, regions.sign, float(logits[0].numel()))
    close(image, mask_margin_image_mean(logits, ref, chosen, rejected))
    of_each = [mask_margin_region_mean(logits[:, k], ref[:, k], chosen[:, k], rejected[:, k]) for k in range(shape[1])]
    some = (chosen ^ rejected).flatten(2).any(2)
    by_class = (torch.stack(of_each, 1) * some).sum(1) / some.sum(1).clamp(min=1)
    close(sparse("class mean", logits, ref, regions), by_class)


@few
@given(seeds, shapes)
def test_one_hot_margins_are_those_of_a_categorical_policy(seed, shape):
    """h = Σ_R of log p(y⁺) − log p(y⁻), less the reference's; the means divide by pixels, not by channels."""
    logits, ref, chosen, rejected = random_pairs(seed, shape, "one-hot")
    regions = one_hot_regions(chosen, rejected)
    better, worse = (mask.to(torch.uint8).argmax(1, keepdim=True) for mask in (chosen, rejected))

    def log_ratio(z):
        logp = z.log_softmax(1)
        return (logp.gather(1, better) - logp.gather(1, worse)).flatten(1)

    gain, differ = log_ratio(logits) - log_ratio(ref), (better != worse).flatten(1)
    size = differ.sum(1)
    close(sparse("sum", logits, ref, regions), gain.sum(1))
    close(sparse("region mean", logits, ref, regions), gain.sum(1) / size.clamp(min=1))
    close(sparse("root", logits, ref, regions), gain.sum(1) / size.clamp(min=1).double().sqrt())
    for n in range(shape[0]):
        present = better[n].flatten()[differ[n]]
        means = [gain[n][differ[n] & (better[n].flatten() == c)].mean() for c in present.unique()]
        expected = torch.stack(means).mean() if means else torch.zeros((), dtype=torch.float64)
        close(sparse("class mean", logits, ref, regions)[n], expected)


@few
@given(seeds, shapes, st.sampled_from(sorted(NORMALISERS)))
def test_softmax_margins_ignore_a_constant_added_to_a_pixel(seed, shape, name):
    logits, ref, chosen, rejected = random_pairs(seed, shape, "one-hot")
    shift = torch.randn(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    regions = one_hot_regions(chosen, rejected)
    close(sparse(name, logits + 10 * shift, ref, regions), sparse(name, logits, ref, regions))


@few
@given(seeds, st.floats(0, 1))
def test_the_power_goes_from_sum_to_mean(seed, alpha):
    logits, ref, chosen, rejected = random_pairs(seed, (3, 2, 4, 4), "independent")
    regions = independent_regions(chosen, rejected)
    values = gather_region(logits, regions.index), gather_region(ref, regions.index), regions.sign
    total, mean = region_margin_sum(*values), region_margin(*values)
    close(region_margin_power(*values, alpha=0.0), total)
    close(region_margin_power(*values, alpha=1.0), mean)
    between = region_margin_power(*values, alpha=alpha).abs()
    assert (between <= total.abs() + 1e-9).all() and (between >= mean.abs() - 1e-9).all()


def test_image_mean_takes_an_area_for_each_image():
    logits, ref, sign = torch.tensor([[6.0], [6.0]]), torch.zeros(2, 1), torch.ones(2, 1)
    close(region_margin_image_mean(logits, ref, sign, torch.tensor([2, 3])), [3.0, 2.0])


@pytest.mark.parametrize("size", [20, 200, 2000])
def test_total_gradients_by_hand(size):
    """−log σ(w h) at h = 0 has slope ½ w on each of |R| logits: ½|R|, ½|R|/|Ω| with |Ω| = 256², ½, and ½√|R|."""
    normalisers = {
        lambda z, ref, sign: region_margin_sum(z, ref, sign): size / 2,
        lambda z, ref, sign: region_margin_image_mean(z, ref, sign, 256**2): size / 2 / 256**2,
        lambda z, ref, sign: region_margin(z, ref, sign): 0.5,
        lambda z, ref, sign: region_margin_power(z, ref, sign, 0.5): math.sqrt(size) / 2,
    }
    for normaliser, expected in normalisers.items():
        logits = torch.zeros(1, size, dtype=torch.float64, requires_grad=True)
        sign = torch.ones(1, size)
        sign[:, ::2] = -1
        sigmoid_loss(normaliser(logits, torch.zeros(1, size), sign), 1.0).sum().backward()
        close(logits.grad.abs().sum(), expected)


@pytest.mark.parametrize("moved, expected", [(0.1, (0.006715, 0.693109, 0.644397))])
def test_losses_after_a_step_as_computed_elsewhere(moved, expected):
    """50 disagreeing logits of 256² moved 0.1 the right way: the sum saturates, the image mean is dead."""
    logits, ref, sign = torch.full((1, 50), moved, dtype=torch.float64), torch.zeros(1, 50), torch.ones(1, 50)
    margins = (
        region_margin_sum(logits, ref, sign),
        region_margin_image_mean(logits, ref, sign, 256**2),
        region_margin(logits, ref, sign),
    )
    close(sigmoid_loss(torch.cat(margins), 1.0), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NORMALISERS)
def test_every_loss_on_every_normaliser_pulls_towards_the_chosen_mask(name, loss, kind):
    """At the reference −∂ℓ/∂z has the sign of y⁺ − y⁻ on R and is 0 elsewhere; an empty region has no gradient."""
    logits, _, chosen, rejected = random_pairs(7, (3, 2, 4, 5), kind)
    regions = REGIONS[kind](chosen, rejected)
    ref = logits.clone()
    logits.requires_grad_()
    losses = LOSSES[loss](sparse(name, logits, ref, regions))
    losses.sum().backward()
    assert losses.isfinite().all() and losses.shape == (3,)
    assert torch.equal(-logits.grad.sign(), chosen.double() - rejected.double())
    assert not logits.grad[0].any()


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("name", NORMALISERS)
def test_margins_vanish_at_the_reference_change_sign_with_the_pair_and_have_true_gradients(name, kind):
    logits, ref, chosen, rejected = random_pairs(3, (2, 2, 2, 3), kind)
    regions = REGIONS[kind](chosen, rejected)
    assert not sparse(name, ref, ref, regions).any()
    if (name, kind) != ("class mean", "one-hot"):  # whose classes are the chosen mask's
        swapped = REGIONS[kind](rejected, chosen)
        close(sparse(name, logits, ref, swapped), -sparse(name, logits, ref, regions))
    assert torch.autograd.gradcheck(lambda z: sparse(name, z, ref, regions), logits.requires_grad_())


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (2, 0), (2, 3)])
@pytest.mark.parametrize("entries", [1, 2])
def test_no_pairs_or_nothing_but_padding(shape, entries):
    sign, classes = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
    margins = [
        lambda z: region_margin_sum(z, torch.zeros(shape), sign),
        lambda z: region_margin_image_mean(z, torch.zeros(shape), sign, 4.0),
        lambda z: region_margin(z, torch.zeros(shape), sign, entries),
        lambda z: region_margin_power(z, torch.zeros(shape), sign, 0.5, entries),
        lambda z: region_margin_class_mean(z, torch.zeros(shape), sign, classes, entries),
    ]
    for margin in margins:
        logits = torch.ones(shape, requires_grad=True)
        values = margin(logits)
        values.sum().backward()
        assert values.shape == shape[:1] and not values.any() and not logits.grad.any()


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (2, 2, 3, 3)])
def test_regions_of_no_pairs_or_equal_masks_are_empty(kind, shape):
    masks = one_hot(torch.zeros((shape[0], *shape[2:]), dtype=torch.int64), 2)
    regions = REGIONS[kind](masks, masks)
    for tensor in (regions.index, regions.sign, regions.classes):
        assert tensor.shape == (shape[0], 0)
    assert gather_region(torch.zeros(shape), regions.index).shape == (shape[0], 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_lifted(dtype):
    logits, ref, chosen, rejected = random_pairs(5, (3, 2, 4, 4), "one-hot", torch.float32)
    regions, low, low_ref = one_hot_regions(chosen, rejected), logits.to(dtype), ref.to(dtype)
    for name in NORMALISERS:
        with torch.autocast("cpu", torch.bfloat16):
            lifted = sparse(name, low, low_ref, regions)
        assert lifted.dtype == torch.float32
        close(lifted, sparse(name, low.float(), low_ref.float(), regions), rtol=0, atol=0)


Z, C = torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64)
M = torch.zeros(1, 2, 3, dtype=torch.bool)
ONE = one_hot(torch.zeros(1, 3, dtype=torch.int64), 2)
ERRORS = {
    "shapes differ: logits (1, 2), ref_logits (1, 2), sign (1, 1)": lambda: region_margin(Z, Z, Z[:, :1]),
    "shapes differ: logits (1, 2), ref_logits (1, 1), sign (1, 2)": lambda: region_margin_sum(Z, Z[:, :1], Z),
    "pixels must be a finite number > 0, got 0": lambda: region_margin_image_mean(Z, Z, Z, 0),
    "pixels must be a finite number > 0, got nan": lambda: region_margin_image_mean(Z, Z, Z, math.nan),
    "shapes differ: pixels (2,), margins (1,)": lambda: region_margin_image_mean(Z, Z, Z, torch.ones(2)),
    "alpha must be in 0..1, got 1.5": lambda: region_margin_power(Z, Z, Z, 1.5),
    "alpha must be in 0..1, got nan": lambda: region_margin_power(Z, Z, Z, math.nan),
    "entries must be 1, or 2 for one-hot masks, got 3": lambda: region_margin(Z, Z, Z, 3),
    "entries must be 1, or 2 for one-hot masks, got 0": lambda: region_margin_class_mean(Z, Z, Z, C, 0),
    "shapes differ: logits (1, 2), classes (1, 1)": lambda: region_margin_class_mean(Z, Z, Z, C[:, :1]),
    "classes must be >= 0, got -1": lambda: region_margin_class_mean(Z, Z, Z, C - 1),
    "shapes differ: chosen (1, 2, 3), rejected (1, 2, 2)": lambda: independent_regions(M, M[..., :2]),
    "rejected must be bool, got torch.uint8": lambda: independent_regions(M, M.byte()),
    "masks must be (N, K, *spatial), got (2, 3)": lambda: one_hot_regions(M[0], M[0]),
    "chosen must be one-hot over axis 1: every pixel on in exactly one channel": lambda: one_hot_regions(M, ONE),
    "rejected must be one-hot over axis 1: every pixel on in exactly one channel": lambda: one_hot_regions(ONE, ~M),
    "logits (1, 2) and index (2, 2) differ in their first axis": lambda: gather_region(Z, C.expand(2, 2)),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
