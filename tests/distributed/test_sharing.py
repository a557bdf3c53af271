"""Which weights ranks hold shares of. Two ranks that agree on a number train in tests/training/test_zero.py."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from popen.distributed.sharing import is_shared, most_of_all


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_weights_of_fsdp_and_zero_are_shared(alone):
    plain, sharded, partitioned = (nn.Linear(2, 3) for _ in range(3))
    fully_shard(sharded, mesh=alone)
    partitioned.bias.ds_id = 7  # as ZeRO-3 marks what it has taken apart
    assert [is_shared(layer.parameters()) for layer in (plain, sharded, partitioned)] == [False, True, True]


def test_the_most_of_one_is_its_own(alone):
    assert most_of_all(5, torch.device("cpu")) == 5
