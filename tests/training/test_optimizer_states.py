"""Bytes of optimizer states by hand, and what is refused before anything is loaded."""

import pytest
import torch
from transformers.training_args import OptimizerNames

from popen.data.safe_io import DataError
from popen.training import SFTArguments
from popen.training.optimizer_states import (
    STATES_IN_BITSANDBYTES,
    STATES_IN_TORCH,
    Trained,
    check_optimizer,
    state_bytes,
)

MATRIX, SMALL = Trained(8192, 4, hidden_matrix=True), Trained(100, 4)
WORDS = Trained(8192, 4, embedding=True)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("adamw_torch", 2 * 4 * 8292),
        ("adamw_torch_fused", 2 * 4 * 8292),
        ("sgd", 0),
        ("paged_adamw_32bit", 2 * 4 * 8292),
        ("adamw_bnb_8bit", 2 * (8192 + 4 * 32) + 2 * 4 * 100),  # 32 blocks of 256; the small one in float32
        ("paged_adamw_8bit", 2 * (8192 + 4 * 32) + 2 * 4 * 100),
        ("lion_8bit", 8192 + 4 * 32 + 4 * 100),
    ],
)
def test_by_hand(name, expected):
    assert state_bytes(name, [MATRIX, SMALL]) == expected


def test_embeddings_stay_in_float32():
    assert state_bytes("adamw_bnb_8bit", [WORDS]) == 2 * 4 * 8192


def test_states_are_as_wide_as_their_weights():
    assert state_bytes("adamw_torch", [Trained(10, 2)]) == 2 * 2 * 10


def test_muon_keeps_one_state_of_hidden_matrices():
    assert state_bytes("adamw_torch", [MATRIX, SMALL], muon=True) == 4 * 8192 + 2 * 4 * 100


def test_what_torch_really_keeps():
    weights = [torch.nn.Parameter(torch.ones(n)) for n in (64, 10)]
    optimizer = torch.optim.AdamW(weights)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    kept = sum(t.numel() * 4 for state in optimizer.state.values() for t in state.values() if t.numel() > 1)
    assert kept == state_bytes("adamw_torch", [Trained(64, 4), Trained(10, 4)])


def test_every_name_is_one_of_transformers():
    assert (STATES_IN_TORCH | STATES_IN_BITSANDBYTES).keys() <= {name.value for name in OptimizerNames}


def test_an_unknown_optimizer_is_named():
    with pytest.raises(DataError, match=r"^optim lomo: how much it keeps is not known; plan with one of adamw_torch"):
        state_bytes("lomo", [])


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_without_cuda_it_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training = SFTArguments(output_dir=str(tmp_path), optim=name, use_cpu=True)
    with pytest.raises(DataError, match=f"^optim {name}: no CUDA device is here; leave it out, adamw_torch trains"):
        check_optimizer(training)


def test_without_bitsandbytes_it_is_refused(tmp_path, monkeypatch):
    training = SFTArguments(output_dir=str(tmp_path), optim="adamw_bnb_8bit", use_cpu=True)
    training.use_cpu = False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"bitsandbytes is missing; pip install 'popen-seg\[qlora\]', or leave optim"):
        check_optimizer(training)


def test_others_pass(tmp_path):
    check_optimizer(SFTArguments(output_dir=str(tmp_path), use_cpu=True))
