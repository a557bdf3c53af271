"""The ensemble's parts against numbers derived by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popen.preference.ensemble import (
    agreement,
    attended_embedding,
    mask_evidence,
    noisy_embeddings,
    preference_attention,
)

few = settings(max_examples=40, deadline=None, derandomize=True)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


# hypotheses


def test_noise_has_the_spread_of_its_scale():
    """σ = (0.5, 2) over 4,000 draws of 8 channels."""
    clean, std = random(1, 2, 8), torch.tensor([0.5, 2.0])
    noise = noisy_embeddings(clean, std, 4000, torch.Generator().manual_seed(1))[0] - clean
    assert noise.shape == (4000, 2, 8)
    torch.testing.assert_close(noise.std((0, 2)), std, rtol=0.03, atol=0)
    torch.testing.assert_close(noise.mean((0, 2)), torch.zeros(2), rtol=0, atol=0.05)


def test_noise_follows_its_seed():
    clean, std = random(3, 2, 8), torch.ones(2)
    first, again, other = (noisy_embeddings(clean, std, 4, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(noisy_embeddings(clean, 0 * std, 4, torch.Generator()), clean[:, None].expand(-1, 4, -1, -1))
    assert noisy_embeddings(clean[:0], std, 4, torch.Generator()).shape == (0, 4, 2, 8)


@pytest.mark.parametrize("count", [0, -3])
def test_an_ensemble_of_none(count):
    with pytest.raises(ValueError, match=rf"K = {count}: an ensemble needs at least one hypothesis"):
        noisy_embeddings(random(1, 2, 8), torch.ones(2), count, torch.Generator())


# attention


def test_identical_keys_leave_the_scores():
    """Similarities are all 1, so α = softmax(λ s): s = (0, ln 3) gives (1, 3) / 4, λ = 2 gives (1, 9) / 10."""
    keys, scores = torch.ones(1, 2, 2, 3), torch.tensor([[0.0, math.log(3)]])
    torch.testing.assert_close(preference_attention(keys, scores, 1.0), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(preference_attention(keys, scores, 2.0), torch.tensor([[0.1, 0.9]]))
    torch.testing.assert_close(preference_attention(keys, scores, 0.0), torch.tensor([[0.5, 0.5]]))


def test_the_query_is_the_preferred_hypothesis():
    """Keys along x, y and −y; the second is preferred: similarities 0, 1, −1, with λ = 0 nothing else counts."""
    keys = torch.tensor([[[[3.0, 0]], [[0, 0.5]], [[0, -7]]]])
    total = 1 + math.e + 1 / math.e
    expected = torch.tensor([[1 / total, math.e / total, 1 / (math.e * total)]])
    torch.testing.assert_close(preference_attention(keys, torch.tensor([[0.0, 2, 1]]), 0.0), expected)


@few
@given(st.integers(0, 2**31), st.permutations(range(5)), st.floats(0, 10))
def test_attention_does_not_know_the_order(seed, order, sharpness):
    """The weights are a distribution, move with the hypotheses, and leave the answer as it is."""
    embeddings, scores = random(3, 5, 2, 4, seed=seed), random(3, 5, seed=seed + 1)
    weights = preference_attention(embeddings, scores, sharpness)
    assert (weights > 0).all() or sharpness > 1
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    moved = preference_attention(embeddings[:, order], scores[:, order], sharpness)
    torch.testing.assert_close(moved, weights[:, order])
    torch.testing.assert_close(
        attended_embedding(embeddings[:, order], moved), attended_embedding(embeddings, weights), atol=1e-5, rtol=1e-5
    )


def test_only_differences_of_scores_matter():
    embeddings, scores = random(2, 4, 2, 3), random(2, 4, seed=1)
    torch.testing.assert_close(
        preference_attention(embeddings, scores + 5, 1.5), preference_attention(embeddings, scores, 1.5)
    )


def test_infinite_sharpness_is_best_of_k():
    embeddings, scores = random(2, 4, 2, 3), random(2, 4, seed=1)
    answer = attended_embedding(embeddings, preference_attention(embeddings, scores, 1e4))
    torch.testing.assert_close(answer, embeddings[torch.arange(2), scores.argmax(1)])


def test_attended_embedding_by_hand():
    """¼ (4, 0) + ¾ (0, 8) = (1, 6)."""
    embeddings = torch.tensor([[[[4.0, 0]], [[0, 8]]]])
    torch.testing.assert_close(
        attended_embedding(embeddings, torch.tensor([[0.25, 0.75]])), torch.tensor([[[1.0, 6]]])
    )


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"embeddings \(2, 4, 2, 3\) and scores \(2, 3\) differ in \(T, K\)"):
        preference_attention(random(2, 4, 2, 3), random(2, 3), 1.0)


# evidence


def test_agreement_by_hand():
    """Pixels 1100, 0110, 1100: IoU 1/3 and 1 for the first, 1/3 twice for the second."""
    masks = torch.tensor([[[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[1, 1, 0, 0]]]]).bool()
    torch.testing.assert_close(agreement(masks), torch.tensor([[2 / 3, 1 / 3, 2 / 3]]))


def test_agreement_of_empty_masks_and_of_one():
    masks = torch.tensor([[[[0, 0]], [[0, 0]], [[1, 0]]]]).bool()
    torch.testing.assert_close(agreement(masks), torch.tensor([[0.5, 0.5, 0.0]]))
    assert agreement(masks[:, :1]).tolist() == [[1.0]]


def test_mask_evidence_by_hand():
    """A picture of 4 × 4 pixels with features 0 … 15, and two hypotheses that share the pixel in the corner.

    First: 2 in the corner, −3 elsewhere. Its band is the rest of the 3 × 3 pixels within two steps:
    (1 + 2 + 4 + 5 + 6 + 8 + 9 + 10) / 8 = 5.625. Second: 2, 4 and 0.5 at features 0, 1 and 4, and one more pixel is
    uncertain outside. Agreement 1/3. Third column of scalars is |logit| / 10.
    """
    features = torch.arange(16.0).view(1, 1, 4, 4)
    logits = torch.full((1, 2, 4, 4), -3.0)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 0] = 2.0
    logits[0, 1, 0, 1], logits[0, 1, 1, 0], logits[0, 1, 3, 3] = 4.0, 0.5, -0.5
    first, second = mask_evidence(logits, features)[0]
    torch.testing.assert_close(first, torch.tensor([0, 5.625, sigmoid(2), 0.2, 1 / 16, 1 / 3, 0]))
    soft = sigmoid(2), sigmoid(4), sigmoid(0.5)
    inside = (0 * soft[0] + 1 * soft[1] + 4 * soft[2]) / sum(soft)
    # within two steps of one of its pixels: rows 0 … 2 and columns 0 … 3, and rows 0 … 3 and columns 0 … 2
    band = (sum(range(15)) - 0 - 1 - 4) / 12
    expected = [inside, band, sum(soft) / 3, 6.5 / 30, 3 / 16, 1 / 3, 2 / 16]
    torch.testing.assert_close(second, torch.tensor(expected))


def test_evidence_of_an_empty_mask_is_finite():
    evidence = mask_evidence(torch.full((1, 2, 8, 8), -5.0), random(1, 3, 4, 4))
    assert evidence.shape == (1, 2, 2 * 3 + 5)
    assert evidence[0, 0].tolist() == [0.0] * 9 + [1.0, 0.0]  # nothing but the agreement of the empty


def test_evidence_of_no_targets():
    assert mask_evidence(torch.zeros(0, 3, 8, 8), torch.zeros(0, 6, 4, 4)).shape == (0, 3, 2 * 6 + 5)


def test_evidence_belongs_to_its_target():
    """Stacking targets changes no number of any of them."""
    logits, features = 3 * random(3, 4, 8, 8), random(3, 5, 4, 4, seed=1)
    together = mask_evidence(logits, features)
    for t in range(3):
        torch.testing.assert_close(together[t : t + 1], mask_evidence(logits[t : t + 1], features[t : t + 1]))
