"""Bytes of a step from counts, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from popen.lvlm import label_logps
from popen.training.memory import (
    GIB,
    Shape,
    footprint,
    logits_at_once,
    mining_bytes,
    quantised_footprint,
    row_activations,
    step_activations,
    step_seconds,
)

SMALL = Shape(
    layers=2, hidden=10, intermediate=20, vocabulary=100, row_tokens=5, answer_tokens=3, targets=1, canvas=28,
    decoder_dim=4,
)  # fmt: skip


def test_activations_by_hand():
    """2·5·10·2 between layers, 5·(80 + 80)·2 in one, 25 of mask, 5·4 cells · 4 · 48 of masks; 3·100·16 of logits."""
    assert row_activations(SMALL) == 200 + 1600 + 25 + 5 * 4 * 4 * 48
    assert step_activations(SMALL, 2) == 2 * row_activations(SMALL) + 2 * 4800


def test_logits_are_those_of_a_piece(monkeypatch):
    """Of four tokens of 100 words, whatever the number of rows; mining reads them at 8 bytes."""
    monkeypatch.setattr(label_logps, "LOGITS_AT_ONCE", 450)
    assert [logits_at_once(tokens, 100) for tokens in (0, 3, 4, 5, 900)] == [0, 300, 400, 400, 400]
    assert step_activations(SMALL, 7) == 7 * row_activations(SMALL) + 6400
    cache = 2 * 2 * 6 * 2 * 5
    assert mining_bytes(1000, SMALL, 6, 1) == 2000 + cache + 2400
    assert mining_bytes(1000, SMALL, 6, 9) == 2000 + 9 * cache + 3200


@pytest.mark.parametrize(
    "stage, weights, gradients, optimizer",
    [(0, 2000, 200, 1200), (1, 2000, 200, 300), (2, 2000, 50, 300), (3, 500, 50, 300)],
)
def test_what_each_stage_splits_over_four_devices(stage, weights, gradients, optimizer):
    """P = 1000, T = 100: 2P, 2T and 12T bytes."""
    found = footprint(1000, 100, SMALL, rows=2, devices=4, zero_stage=stage)
    assert (found.weights, found.gradients, found.optimizer) == (weights, gradients, optimizer)
    assert found.activations == step_activations(SMALL, 2)
    assert found.total == weights + gradients + optimizer + found.activations


def test_more_of_anything_takes_more():
    base = step_activations(SMALL, 1)
    for name in ("layers", "hidden", "intermediate", "vocabulary", "row_tokens", "answer_tokens", "targets"):
        assert step_activations(replace(SMALL, **{name: getattr(SMALL, name) + 1}), 1) > base, name


@pytest.mark.parametrize("stage, devices, rows", [(4, 1, 1), (-1, 1, 1), (2, 0, 1), (2, 1, 0)])
def test_what_cannot_be(stage, devices, rows):
    with pytest.raises(ValueError, match=f"zero_stage {stage}, devices {devices}, rows {rows}: stages are 0 to 3"):
        footprint(1, 1, SMALL, rows, devices, stage)


def test_four_bits_by_hand():
    """P = 20000, T = 100, Q = 16384: 8192 bytes, scales 4 · 256 or 256 + 4, and 4 · 3616 of the others."""
    plain, nested = (quantised_footprint(20000, 100, 16384, SMALL, 2, nested) for nested in (False, True))
    assert (plain.weights, nested.weights) == (8192 + 1024 + 14464, 8192 + 260 + 14464)
    assert (plain.gradients, plain.optimizer, plain.activations) == (400, 800, step_activations(SMALL, 2))


@pytest.mark.parametrize("quantised, rows", [(901, 1), (-1, 1), (900, 0)])
def test_four_bits_of_what_is_trained(quantised, rows):
    with pytest.raises(ValueError, match=f"quantised {quantised} of 1000, 100 trained, rows {rows}: only frozen"):
        quantised_footprint(1000, 100, quantised, SMALL, rows, False)


def test_seconds_of_a_step():
    """6 · 10⁹ parameters · 1000 tokens · 2 rows · 5 micro-steps at half of 10¹⁴ operations a second: 1.2 s."""
    assert step_seconds(10**9, 1000, 2, 5, 1e14, 0.5) == pytest.approx(1.2)


def test_a_gibibyte():
    assert GIB == 1024**3
