"""The codebook's sum, by hand."""

import pytest
import torch

from popen.lvlm.codebook import Codebook


def test_embeddings_by_hand():
    """With the MLP an identity on positive numbers and w = ((1, 2), (3, 4)):

    scale 0: 1·(1, 0) + 2·(0, 1) = (1, 2); scale 1: 3·(1, 1) + 4·(2, 0) = (11, 3).
    """
    codebook = Codebook(hidden_size=2, dim=2, scales=2, tokens_per_scale=2)
    with torch.no_grad():
        for layer in (codebook.project[0], codebook.project[2]):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
        codebook.fusion.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    hidden = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [2, 0]]])
    torch.testing.assert_close(codebook(hidden), torch.tensor([[[1.0, 2], [11, 3]]]))


def test_starts_as_the_mean_and_is_trained():
    codebook = Codebook(6, 4, scales=3, tokens_per_scale=2)
    assert codebook.fusion.tolist() == [[0.5, 0.5]] * 3
    codebook(torch.randn(5, 6, 6)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in codebook.parameters())


def test_scales_do_not_mix():
    codebook = Codebook(6, 4, scales=2, tokens_per_scale=3)
    hidden = torch.randn(2, 6, 6)
    changed = hidden.clone()
    changed[:, 3:] += 1
    before, after = codebook(hidden), codebook(changed)
    assert torch.equal(before[:, 0], after[:, 0]) and (before[:, 1] != after[:, 1]).any()


def test_no_targets():
    assert Codebook(6, 4, 2, 3)(torch.zeros(0, 6, 6)).shape == (0, 2, 4)


@pytest.mark.parametrize("shape", [(2, 5, 6), (6, 6)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"the codebook needs \(T, 6, H\)"):
        Codebook(6, 4, 2, 3)(torch.zeros(shape))
