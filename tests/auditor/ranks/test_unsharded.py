from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed import fsdp

from nnaudit.ranks.unsharded import unsharded


def test_one_process_keeps_its_whole_network() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = dict(net.named_parameters())
    with unsharded():
        assert fsdp.fully_shard(net[0]) is net[0]
        assert fsdp.fully_shard(net, reshard_after_forward=False) is net
    assert isinstance(net, fsdp.FSDPModule)
    assert isinstance(net, nn.Sequential)
    assert all(p is before[name] for name, p in net.named_parameters())
    net.set_requires_gradient_sync(False)
    assert net.unshard(async_op=True).wait() is None
    assert net(torch.zeros(2, 3)).shape == (2, 2)
    assert isinstance(net[:1], nn.Sequential)  # which makes one of the same type


def test_the_real_one_is_back_afterwards() -> None:
    real = fsdp.fully_shard
    with pytest.raises(RuntimeError), unsharded():
        raise RuntimeError
    assert fsdp.fully_shard is real
