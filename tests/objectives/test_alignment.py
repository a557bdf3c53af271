"""Words and places: cover, pooling, naming and looking by hand."""

import math

import pytest
import torch

from popen.objectives.alignment import looking_loss, naming_loss, pooled_tokens, token_cover


def test_cover_by_hand():
    """A 4 × 4 mask over 2 × 2 tokens: a full quarter, a half, a pixel and nothing."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).float()
    assert token_cover(mask[None], 4).tolist() == [[1.0, 0.5, 0.25, 0.0]]
    with pytest.raises(ValueError, match=r"^6 picture tokens are no square"):
        token_cover(mask[None], 6)


def test_pooling_weighs_by_cover():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 4.0], [8.0, 8.0]]])
    torch.testing.assert_close(pooled_tokens(tokens, torch.tensor([[1.0, 0.5, 0.0]])), torch.tensor([[2 / 3, 4 / 3]]))
    assert pooled_tokens(tokens, torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match=r"differ in \(T, P\)"):
        pooled_tokens(tokens, torch.ones(1, 2))


def test_naming_by_hand():
    """Probabilities 1/2, 1/4, 1/4: two words cost log 2 and log 4, the mean of them counts; padding is no word."""
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).log()
    found = naming_loss(logits[:2], torch.tensor([[0, 2], [1, -1]]))
    torch.testing.assert_close(found, torch.tensor([1.5 * math.log(2), math.log(3)]))
    assert naming_loss(logits[:1], torch.tensor([[-1, -1]])).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"^2 targets and 1 phrases"):
        naming_loss(logits[:2], torch.tensor([[0, 2]]))


def test_looking_by_hand():
    """All of a target covered best by token 1: what falls on it counts whole, on a half-covered token half."""
    attention = torch.tensor([[0.2, 0.4, 0.3], [0.0, 0.0, 1.0]])
    cover = torch.tensor([[0.4, 0.8, 0.0], [0.4, 0.8, 0.0]])
    found = looking_loss(attention, cover)
    torch.testing.assert_close(found, torch.tensor([-math.log(0.5), -math.log(1e-6)]))
    with pytest.raises(ValueError, match=r"^shapes differ"):
        looking_loss(attention, cover[:1])


def test_looking_reaches_the_attention():
    attention = torch.tensor([[0.25, 0.25]], requires_grad=True)
    looking_loss(attention, torch.tensor([[1.0, 0.0]])).sum().backward()
    assert attention.grad.tolist() == [[-4.0, 0.0]]
