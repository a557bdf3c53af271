"""The ε-constraint's multiplier: by hand, kept through stages and still in validation, and the limit is kept."""

import numpy as np
import pytest
import torch

from popen.medical.boundary import signed_distance
from popen.medical.epsilon_constraint import EpsilonConstraint
from popen.medical.supervised import Labelled, interior_boundary

REGION = np.zeros((1, 1, 12, 12), dtype=bool)
REGION[..., 3:9, 3:9] = True
MASKS = torch.from_numpy(REGION)
DISTANCE = torch.from_numpy(signed_distance(REGION, (1.0, 1.0)))


def labelled(logits, activation="sigmoid"):
    masks, distance = MASKS, DISTANCE
    if activation == "softmax":
        masks, distance = torch.cat([~MASKS, MASKS], 1), torch.cat([-DISTANCE, DISTANCE], 1)
    return Labelled((logits,), masks, distance, None, 0.5)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_multiplier_takes_its_step_after_the_parts_by_hand(activation):
    """At zero logits both cross-entropies are ln 2: λ = 1 + 0.5 (ln 2 − 0.1), then as much again."""
    loss = EpsilonConstraint(band=2.0, limit=0.1, rate=0.5)
    shape = (1, 1 if activation == "sigmoid" else 2, 12, 12)
    step = 0.5 * (np.log(2) - 0.1)
    for number in range(2):
        parts = loss(labelled(torch.zeros(shape).requires_grad_(), activation), activation)
        assert parts["interior"].item() == pytest.approx((1 + number * step) * np.log(2))
        assert parts["boundary"].item() == pytest.approx(np.log(2))
        assert loss.multiplier == pytest.approx(1 + (number + 1) * step)
    assert parts["interior"].requires_grad and set(parts) == {"interior", "boundary", "dice"}


def test_validation_does_not_move_it_and_it_never_falls_below_0():
    loss = EpsilonConstraint(band=2.0, limit=0.1, rate=0.5)
    loss(labelled(torch.zeros(1, 1, 12, 12)), "sigmoid")
    assert loss.multiplier == 1
    right = 20 * (2.0 * MASKS - 1)
    for _ in range(30):
        loss(labelled(right.clone().requires_grad_()), "sigmoid")
    assert loss.multiplier == 0


def test_without_a_picture_it_stays():
    loss = EpsilonConstraint(band=2.0, limit=0.1, rate=0.5)
    parts = loss(
        Labelled((torch.zeros(0, 1, 12, 12).requires_grad_(),), MASKS[:0], DISTANCE[:0], None, 0.5), "sigmoid"
    )
    assert sum(parts.values()) == 0 and loss.multiplier == 1


def test_the_interior_is_held_near_the_limit():
    """One logit inside and one outside: what suits the soft boundary costs the interior, until λ grows."""
    found = []
    for limit in (10.0, 0.05):
        loss, heights = EpsilonConstraint(band=3.0, limit=limit, rate=0.5), torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([heights], 0.05)
        for _ in range(300):
            logits = torch.where(MASKS, heights[0], heights[1])
            parts = loss(labelled(logits), "sigmoid")
            optimizer.zero_grad()
            (parts["interior"] + parts["boundary"]).backward()
            optimizer.step()
        logits = torch.where(MASKS, heights[0], heights[1]).detach()
        found.append((float(interior_boundary(labelled(logits), "sigmoid", 3.0)[0]), loss.multiplier))
    (free, none), (held, some) = found
    assert none == 0 and free > 0.09
    assert held < 0.055 and some > 0


def test_what_cannot_work_is_one_line():
    with pytest.raises(ValueError, match="limit must be >= 0, got -1: the interior's cross-entropy is never below 0"):
        EpsilonConstraint(2.0, -1, 0.1)
    with pytest.raises(ValueError, match="rate must be > 0, got 0"):
        EpsilonConstraint(2.0, 0.1, 0)
    with pytest.raises(ValueError, match="multiplier must be >= 0, got -2"):
        EpsilonConstraint(2.0, 0.1, 0.1, -2)
    bare = Labelled((torch.zeros(1, 1, 12, 12),), MASKS, None, None, 0.5)
    with pytest.raises(ValueError, match="needs distance: build the examples with it"):
        EpsilonConstraint(2.0, 0.1, 0.1)(bare, "sigmoid")
