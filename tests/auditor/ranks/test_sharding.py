from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from nnaudit.ranks import first_step, sharding
from nnaudit.ranks.first_step import Kept
from nnaudit.ranks.sharding import Piece

WHOLE = torch.arange(10.0).reshape(5, 2)


@pytest.fixture
def second() -> Iterator[None]:
    """This process is the second of two, without the other."""
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    distributed.destroy_process_group()


def placed(placement: Any) -> nn.Parameter:
    mesh = init_device_mesh("cpu", (2,))
    return nn.Parameter(distribute_tensor(WHOLE, mesh, [placement], src_data_rank=None))


@pytest.mark.usefixtures("second")
def test_a_rank_says_which_part_it_holds() -> None:
    parameter = placed(Shard(0))
    assert sharding.is_sharded(parameter)
    found = sharding.piece(parameter)
    assert found is not None
    assert (found.shape, found.offset) == ((5, 2), (3, 0))
    assert torch.equal(found.values, WHOLE[3:])


@pytest.mark.usefixtures("second")
def test_what_is_replicated_is_whole() -> None:
    parameter = placed(Replicate())
    assert not sharding.is_sharded(parameter)
    assert torch.equal(parameter.to_local(), WHOLE)  # type: ignore[attr-defined]


def test_the_parts_of_all_ranks_make_the_step_that_is_taken_again(tmp_path: Path) -> None:
    bias = Piece((2,), (0,), torch.ones(2))
    parts = [Piece((5, 2), (0, 0), WHOLE[:3]), Piece((5, 2), (3, 0), WHOLE[3:])]
    for number, part in enumerate(parts):
        kept = Kept([number], {"weight": part, "bias": bias}, {"weight": part})
        torch.save(kept, first_step.place(tmp_path, number))
    found = first_step.load(tmp_path, 2)
    assert [step.batches for step in found] == [[0], [1]]
    for step in found:
        assert torch.equal(step.weights["weight"], WHOLE)
        assert torch.equal(step.weights["bias"], torch.ones(2))
        assert torch.equal(step.gradients["weight"], WHOLE)
