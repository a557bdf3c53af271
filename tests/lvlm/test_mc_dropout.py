"""Dropout comes, is seeded, and leaves without a trace."""

import pytest
import torch
from torch import nn

from popen.lvlm.inference import forced_drafts
from popen.lvlm.mc_dropout import residual_dropout


def drafts(taught, samples):
    model, processor = taught
    asked = [(s.image, q.question, q.answer) for s in samples[:2] for q in s.questions]
    return forced_drafts(model, processor, *([row[i] for row in asked] for i in range(3)))


def test_words_doubt_and_pictures_do_not(taught, samples):
    clean = drafts(taught, samples)
    with residual_dropout(taught[0], 0.2, seed=1):
        first = drafts(taught, samples)
    with residual_dropout(taught[0], 0.2, seed=1):
        again = drafts(taught, samples)
    with residual_dropout(taught[0], 0.2, seed=2):
        other = drafts(taught, samples)
    after = drafts(taught, samples)
    same = lambda a, b: all(torch.equal(x.embeddings, y.embeddings) for x, y in zip(a, b, strict=True))  # noqa: E731
    assert same(clean, after) and same(first, again)
    assert not same(clean, first) and not same(first, other)
    assert all(
        torch.equal(x, y)
        for a, b in zip(clean, first, strict=True)
        for x, y in zip(a.features, b.features, strict=True)
    )


def test_the_expectation_is_kept():
    """A share p of the channels is 0, the others are 1 / (1 − p) of what they were."""
    layer = nn.ModuleDict({"language_model": nn.ModuleDict({"o_proj": nn.Linear(1, 4000, bias=False)})})
    nn.init.ones_(layer["language_model"]["o_proj"].weight)
    with residual_dropout(layer, 0.25, seed=0):
        found = layer["language_model"]["o_proj"](torch.ones(1, 1))
    assert found.unique().tolist() == pytest.approx([0, 4 / 3])
    assert found.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_impossible_rates_are_refused(taught, rate):
    with pytest.raises(ValueError, match="share in"), residual_dropout(taught[0], rate, seed=0):
        pass


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="has no place"), residual_dropout(nn.Linear(2, 2), 0.1, seed=0):
        pass
