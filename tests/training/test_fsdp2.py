"""The model in the pieces of FSDP2, wrapped as recipes/accelerate/fsdp2.yaml asks for it."""

import copy

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from popen.lvlm import label_logps
from popen.lvlm.packing import supervised_batch


@pytest.fixture
def mesh(tmp_path):
    """One process: pieces are whole, and every part of the model meets sharded tensors all the same."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # one output is a view, which nobody changes in place
def test_a_sharded_step_is_a_step(tiny, samples, mesh, monkeypatch):
    """Layers that the backbone's classes name are wrapped, then the rest: loss and gradients are as before, also where
    the logits are computed in pieces."""
    plain = copy.deepcopy(tiny[0]).train()
    sharded = copy.deepcopy(plain)
    assert "LlamaDecoderLayer" in plain._no_split_modules  # what TRANSFORMER_BASED_WRAP goes by
    for module in sharded.modules():
        if type(module).__name__ in plain._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    batch = supervised_batch(tiny[1], samples[:2])
    inputs = {name: value for name, value in batch.items() if name not in ("token_sequence", "sequence_row")}
    losses = []
    for model, logits in ((plain, 2**25), (sharded, 2**14)):
        monkeypatch.setattr(label_logps, "LOGITS_AT_ONCE", logits)
        loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1])
    pieces = dict(sharded.named_parameters())
    for name, parameter in plain.named_parameters():
        found = pieces[name].grad
        if parameter.grad is None:
            assert found is None
        else:
            torch.testing.assert_close(found.full_tensor(), parameter.grad, msg=name)
