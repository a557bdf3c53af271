"""Which weights ranks hold shares of. Two ranks that agree on a number train in tests/training/test_zero.py."""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from popen.distributed.sharing import is_shared, most_of_all


def test_weights_of_fsdp_and_zero_are_shared(one_process_mesh):
    plain, sharded, partitioned = (nn.Linear(2, 3) for _ in range(3))
    fully_shard(sharded, mesh=one_process_mesh)
    partitioned.bias.ds_id = 7  # as ZeRO-3 marks what it has taken apart
    assert [is_shared(layer.parameters()) for layer in (plain, sharded, partitioned)] == [False, True, True]


def test_the_most_of_one_is_its_own(one_process_mesh):
    assert most_of_all(5, torch.device("cpu")) == 5
