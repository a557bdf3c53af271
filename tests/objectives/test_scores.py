"""Log-probabilities and margins against numbers derived by hand and the likelihoods that they stand for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.objectives.scores import (
    changed_token_logps,
    embedding_cosine_margin,
    embedding_distance_margin,
    embedding_squared_margin,
    mask_margin_image_mean,
    mask_margin_region_mean,
    mask_margin_sum,
    mean_weighted_token_logps,
    per_token_logps,
    token_logps,
    weighted_token_logps,
)
from popen.objectives.shapes import check_bool, check_same_shape, full_precision

MASK_MARGINS = [mask_margin_sum, mask_margin_image_mean, mask_margin_region_mean]
EMBEDDING_MARGINS = [embedding_cosine_margin, embedding_distance_margin, embedding_squared_margin]
few = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def close(actual, expected, **kwargs):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **kwargs)


def random_masks(seed, shape=(3, 6, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits, ref = (3 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    chosen, rejected = (torch.rand(shape, generator=generator) > 0.5 for _ in range(2))
    return logits, ref, chosen, rejected


def random_embeddings(seed, shape=(3, 4), count=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


# tokens


def test_token_logps_by_hand():
    """exp z = (1, 3) and (1, 1): p = (1/4, 3/4) and (1/2, 1/2).

    First row: both tokens count, labels 1 and 0: ln 3/4 + ln 1/2 = ln 3/8. Second: only the first, label 0: ln 1/4.
    """
    logits = torch.tensor([[[0, math.log(3)], [0, 0]]] * 2)
    labels = torch.tensor([[1, 0], [0, -100]])
    mask = torch.tensor([[True, True], [True, False]])
    close(token_logps(logits, labels, mask), [math.log(3 / 8), math.log(1 / 4)])
    close(per_token_logps(logits[0], labels[0]), [math.log(3 / 4), math.log(1 / 2)])


def test_token_logps_do_not_shift():
    """Changing the last position's logits changes the last position's token: nothing is moved by one."""
    logits, labels = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
    logits[0, 2, 2] = 50.0
    close(per_token_logps(logits, labels), [[-math.log(4), -math.log(4), 0.0]])


@few
@given(seeds)
def test_probabilities_of_all_labels_sum_to_one(seed):
    logits = 20 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    every = torch.arange(7).expand(5, 7)
    close(per_token_logps(logits[:, None].expand(5, 7, 7), every).exp().sum(1), torch.ones(5))


def test_padding_with_probability_zero_leaves_loss_and_gradient_finite():
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    barred = logits + torch.tensor([[[0, 0, 0], [-math.inf, 0, 0]]])
    loss = token_logps(barred, torch.tensor([[0, -100]]), torch.tensor([[True, False]]))
    loss.sum().backward()
    close(loss, [-math.log(3)])
    assert logits.grad.isfinite().all() and not logits.grad[0, 1].any()


def test_weighted_logps_by_hand():
    """log p = (−1, −2, −4, −9), the last is padding, the third is changed, γ = 3.

    Sum −1 − 2 + 3·(−4) = −15; N = 2 + 3·1 = 5, mean −3; changed alone −4. A mark on padding has no effect.
    """
    logps = torch.tensor([[-1.0, -2.0, -4.0, -9.0]])
    mask = torch.tensor([[True, True, True, False]])
    changed = torch.tensor([[False, False, True, True]])
    close(weighted_token_logps(logps, mask, changed, 3.0), [-15.0])
    close(mean_weighted_token_logps(logps, mask, changed, 3.0), [-3.0])
    close(changed_token_logps(logps, mask, changed), [-4.0])


def test_mean_with_a_weight_below_one_divides_by_less_than_one():
    """One changed token of log p −2, γ = 1/4: N = 1/4, mean −2."""
    one = torch.tensor([[True]])
    close(mean_weighted_token_logps(torch.tensor([[-2.0]]), one, one, 0.25), [-2.0])


@few
@given(seeds, st.floats(0.1, 10))
def test_weighted_logps_are_the_plain_sum_plus_the_extra_weight(seed, weight):
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(4, 9, generator=generator, dtype=torch.float64)
    mask, changed = (torch.rand(4, 9, generator=generator) > 0.4 for _ in range(2))
    plain, extra = (logps * mask).sum(1), changed_token_logps(logps, mask, changed)
    close(weighted_token_logps(logps, mask, changed, weight), plain + (weight - 1) * extra)
    close(weighted_token_logps(logps, mask, changed, 1.0), plain)
    mean = mean_weighted_token_logps(logps, mask, changed, 1e9)  # the limit case, as a mean
    some = (mask & changed).any(1)
    close(mean[some], (extra / (mask & changed).sum(1))[some], rtol=1e-6, atol=1e-6)


def test_a_sequence_without_tokens_scores_zero():
    none = torch.zeros(2, 3, dtype=torch.bool)
    logps = torch.full((2, 3), -1.0)
    for score in (weighted_token_logps, mean_weighted_token_logps):
        close(score(logps, none, none, 2.0), [0.0, 0.0])
    close(changed_token_logps(logps, none, none), [0.0, 0.0])


# masks


def test_mask_margins_by_hand():
    """Of 4 pixels, R = {0, 1, 2} with signs +, −, +; z − z_ref = (2, 1, 5, 7).

    Sum 2 − 1 + 5 = 6, image mean 6/4, region mean 6/3. The second pair agrees everywhere: 0.
    """
    logits = torch.tensor([[[3.0, 1.0], [4.0, 7.0]]] * 2)
    ref = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]] * 2)
    chosen = torch.tensor([[[True, False], [True, True]]] * 2)
    rejected = torch.tensor([[[False, True], [False, True]], [[True, False], [True, True]]])
    close(mask_margin_sum(logits, ref, chosen, rejected), [6.0, 0.0])
    close(mask_margin_image_mean(logits, ref, chosen, rejected), [1.5, 0.0])
    close(mask_margin_region_mean(logits, ref, chosen, rejected), [2.0, 0.0])


@few
@given(seeds)
def test_sum_margin_is_the_log_ratio_of_bernoulli_likelihoods(seed):
    logits, ref, chosen, rejected = random_masks(seed)

    def loglik(z, y):
        return torch.distributions.Bernoulli(logits=z).log_prob(y.to(z.dtype)).flatten(1).sum(1)

    expected = (loglik(logits, chosen) - loglik(ref, chosen)) - (loglik(logits, rejected) - loglik(ref, rejected))
    close(mask_margin_sum(logits, ref, chosen, rejected), expected)


@pytest.mark.parametrize("margin", MASK_MARGINS)
def test_mask_margins_change_sign_with_the_pair_and_vanish_at_the_reference(margin):
    logits, ref, chosen, rejected = random_masks(0)
    close(margin(logits, ref, rejected, chosen), -margin(logits, ref, chosen, rejected))
    assert not margin(ref, ref, chosen, rejected).any()


@pytest.mark.parametrize("margin", MASK_MARGINS)
def test_a_volume_is_its_pixels(margin):
    volume = random_masks(1, (2, 3, 4, 5))
    close(margin(*volume), margin(*(tensor.reshape(2, 12, 5) for tensor in volume)))


@pytest.mark.parametrize("margin", MASK_MARGINS)
def test_mask_margin_gradients(margin):
    logits, ref, chosen, rejected = random_masks(2, (2, 3, 2))
    assert torch.autograd.gradcheck(lambda z: margin(z, ref, chosen, rejected), logits.requires_grad_())


@pytest.mark.parametrize("side", [2, 8, 64])
def test_region_mean_gives_every_size_of_disagreement_the_same_gradient(side):
    """|∂h/∂z| sums to |R| · 1/|R| = 1, for |R| = side² of 64² pixels."""
    logits = torch.zeros(1, 64, 64, requires_grad=True)
    chosen, rejected = (torch.zeros(1, 64, 64, dtype=torch.bool) for _ in range(2))
    chosen[:, :side, :side] = True
    mask_margin_region_mean(logits, torch.zeros(1, 64, 64), chosen, rejected).sum().backward()
    close(logits.grad.abs().sum(), 1.0)


# embeddings


def test_embedding_margins_by_hand():
    """e = (1, 0), e_ref = (0, 1), e⁺ = (2, 0), e⁻ = (0, 3).

    Cosine: (1 − 0) − (0 − 1) = 2. Distance: (√5 − 1) − (2 − √10) = √5 + √10 − 3.
    Squared: (5 − 1) − (4 − 10) = 10 = 2 (1, −1)·(2, −3).
    """
    e = [torch.tensor([v]) for v in ([1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0])]
    close(embedding_cosine_margin(*e), [2.0])
    close(embedding_distance_margin(*e), [math.sqrt(5) + math.sqrt(10) - 3])
    close(embedding_squared_margin(*e), [10.0])


@few
@given(seeds)
def test_squared_margin_is_linear_and_so_has_no_attractor(seed):
    e, e_ref, plus, minus = random_embeddings(seed)
    close(embedding_squared_margin(e, e_ref, plus, minus), 2 * ((e - e_ref) * (plus - minus)).sum(-1))
    at_plus = plus.clone().requires_grad_()
    embedding_squared_margin(at_plus, e_ref, plus, minus).sum().backward()
    close(at_plus.grad, 2 * (plus - minus))  # the pull does not end on arrival
    far = [embedding_squared_margin(plus + t * (plus - minus), e_ref, plus, minus) for t in (1, 10, 100)]
    assert (far[0] < far[1]).all() and (far[1] < far[2]).all()


@few
@given(seeds)
def test_distance_and_cosine_margins_are_bounded(seed):
    e, e_ref, plus, minus = random_embeddings(seed)
    here = embedding_distance_margin(plus, e_ref, plus, minus)
    assert (embedding_distance_margin(1e3 * e, e_ref, plus, minus) <= here + 1e-9).all()
    assert (embedding_cosine_margin(1e3 * e, e_ref, plus, minus).abs() <= 4).all()


@pytest.mark.parametrize("margin", EMBEDDING_MARGINS)
def test_embedding_margins_vanish_at_the_reference_and_average_over_scales(margin):
    e, e_ref, plus, minus = random_embeddings(3, (2, 3, 5))
    assert torch.equal(margin(e_ref, e_ref, plus, minus), torch.zeros(2, dtype=torch.float64))
    per_scale = [margin(e[:, i], e_ref[:, i], plus[:, i], minus[:, i]) for i in range(3)]
    close(margin(e, e_ref, plus, minus), torch.stack(per_scale).mean(0))
    close(margin(e, e_ref, minus, plus), -margin(e, e_ref, plus, minus))


@pytest.mark.parametrize("margin", EMBEDDING_MARGINS)
def test_embedding_margin_gradients(margin):
    e, *frozen = random_embeddings(4)
    assert torch.autograd.gradcheck(lambda x: margin(x, *frozen), e.requires_grad_())


def test_distance_margin_has_a_finite_gradient_on_arrival():
    plus = torch.ones(1, 2, requires_grad=True)
    embedding_distance_margin(plus, torch.zeros(1, 2), plus.detach(), -torch.ones(1, 2)).sum().backward()
    assert plus.grad.isfinite().all()


# precision and errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_lifted_also_under_autocast(dtype):
    logits, ref, chosen, rejected = random_masks(5, dtype=torch.float32)
    e = [tensor.to(dtype) for tensor in random_embeddings(5)]
    low, low_ref = logits.to(dtype), ref.to(dtype)
    labels = torch.zeros(3, 6, dtype=torch.int64)

    def scores(z, z_ref, e):
        yield from (margin(z, z_ref, chosen, rejected) for margin in MASK_MARGINS)
        yield from (margin(*e) for margin in EMBEDDING_MARGINS)
        yield token_logps(z, labels, torch.ones(3, 6, dtype=torch.bool))

    exact = list(scores(low.float(), low_ref.float(), [tensor.float() for tensor in e]))
    with torch.autocast("cpu", torch.bfloat16):
        lifted = list(scores(low, low_ref, e))
    for a, b in zip(lifted, exact, strict=True):
        assert a.dtype == torch.float32
        close(a, b, rtol=0, atol=0)


def test_full_precision_keeps_double():
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert full_precision(torch.zeros(1, dtype=torch.bool)).dtype == torch.float32


B = torch.zeros(1, 2, dtype=torch.bool)
Z = torch.zeros(1, 2)
ERRORS = {
    "shapes differ: a (1, 2), b (2,)": lambda: check_same_shape(a=Z, b=Z[0]),
    "mask must be bool, got torch.uint8": lambda: check_bool(mask=B.byte()),
    "shapes differ: logits (1, 2), ref_logits (1, 1), chosen (1, 2), rejected (1, 2)": lambda: mask_margin_region_mean(
        Z, Z[:, :1], B, B
    ),
    "chosen must be bool, got torch.float32": lambda: mask_margin_sum(Z, Z, Z, B),
    "shapes differ: logits (1, 2) without V, labels (2,)": lambda: per_token_logps(Z, torch.tensor([0, 1])),
    "shapes differ: labels (1, 2), mask (1, 1)": lambda: token_logps(Z[..., None], B.long(), B[:, :1]),
    "shapes differ: logps (1, 2), mask (1, 2), changed (1, 1)": lambda: changed_token_logps(Z, B, B[:, :1]),
    "changed must be bool, got torch.float32": lambda: weighted_token_logps(Z, B, Z, 1.0),
    "weight must be a finite number > 0, got 0": lambda: weighted_token_logps(Z, B, B, 0),
    "weight must be a finite number > 0, got nan": lambda: mean_weighted_token_logps(Z, B, B, math.nan),
    "shapes differ: e (1, 2), e_ref (2,), e_plus (1, 2), e_minus (1, 2)": lambda: embedding_cosine_margin(
        Z, Z[0], Z, Z
    ),
    "embeddings must be (B, D) or (B, L, D), got (2,)": lambda: embedding_distance_margin(Z[0], Z[0], Z[0], Z[0]),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_one_line(message):
    with pytest.raises(ValueError) as error:
        ERRORS[message]()
    assert str(error.value) == message
