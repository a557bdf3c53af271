"""Muon beside AdamW: which weights it moves, how far, and that a run resumes with both."""

import copy

import torch
from torch import nn

from popen.training.muon import MuonWithAdamW, hidden_matrices


def optimizer_of(matrix, vector, muon_learning_rate=0.1, weight_decay=0.0):
    return MuonWithAdamW([matrix], [], [vector], 0.01, muon_learning_rate, (0.9, 0.98), weight_decay)


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(4, 4, generator=generator)), nn.Parameter(torch.randn(3, generator=generator))


def test_the_first_update_is_orthogonal_for_matrices_and_the_sign_for_the_rest():
    """Muon turns the momentum into its nearest orthogonal matrix, AdamW's first step is lr · sign(gradient)."""
    matrix, vector = parameters()
    before = matrix.detach().clone(), vector.detach().clone()
    optimizer = optimizer_of(matrix, vector)
    matrix.grad, vector.grad = torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0])), torch.tensor([2.0, -0.5, 1.0])
    optimizer.step()
    step = (before[0] - matrix.detach()) / 0.1
    singular = torch.linalg.svdvals(step)
    assert (singular > 0.6).all() and (singular < 1.3).all()  # Newton-Schulz brings them near 1, not to it
    torch.testing.assert_close(before[1] - vector.detach(), 0.01 * vector.grad.sign(), atol=1e-5, rtol=0)


def test_a_schedule_scales_both_rates():
    optimizer = optimizer_of(*parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.5)
    optimizer.step()
    schedule.step()
    assert optimizer.muon.param_groups[0]["lr"] == 0.05
    assert [group["lr"] for group in optimizer.adamw.param_groups] == [0.005, 0.005]


def test_a_restored_state_goes_on_as_if_never_stopped():
    def run(matrix, vector, optimizer, steps, first=0):
        for step in range(first, first + steps):
            generator = torch.Generator().manual_seed(step)
            matrix.grad, vector.grad = torch.randn(4, 4, generator=generator), torch.randn(3, generator=generator)
            optimizer.step()

    whole, half = parameters(), parameters()
    run(*whole, optimizer_of(*whole, weight_decay=0.1), 6)
    first = optimizer_of(*half, weight_decay=0.1)
    run(*half, first, 3)
    state = copy.deepcopy(first.state_dict())
    second = optimizer_of(*half, muon_learning_rate=9.0)
    second.load_state_dict(state)
    assert second.param_groups[0]["lr"] == 0.1 and second.param_groups[0] is second.muon.param_groups[0]
    run(*half, second, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))


def test_hidden_matrices_are_linear_layers_without_embeddings_and_output(tiny):
    names = hidden_matrices(tiny[0])
    assert "backbone.model.language_model.layers.0.self_attn.q_proj.weight" in names
    assert "mask_decoder.levels.0.layers.0.mlp.0.weight" in names
    assert not any("embed" in name or "lm_head" in name for name in names)
    shapes = {name: parameter.shape for name, parameter in tiny[0].named_parameters()}
    assert all(len(shapes[name]) == 2 and min(shapes[name]) > 1 for name in names)
