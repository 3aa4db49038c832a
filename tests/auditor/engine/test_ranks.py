"""A script on two ranks: real processes, gloo, a few steps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnaudit.engine import ranks
from nnaudit.engine.job import Job
from nnaudit.engine.ranks import RanksError
from nnaudit.ranks.record import Ranks
from nnaudit.settings import Settings

SCRIPT = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

dist.init_process_group("nccl")
rank = dist.get_rank()
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
data = TensorDataset(torch.randn(160, 4), torch.arange(160) % 2)
sampler = DistributedSampler(data, drop_last=True)
loader = DataLoader(data, 4, sampler=sampler)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
{before}
for epoch in range(3):
    sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    {after}
"""


def watched(path: Path, *, before: str = "", after: str = "pass") -> Ranks:
    path.write_text(SCRIPT.format(before=before, after=after))
    settings = Settings(nproc_per_node=2, device="cpu", check_timeout=120)
    return ranks.observed(Job(path=str(path), settings=settings), overlay=False)


def test_what_two_ranks_do_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    after = 'torch.save(model.module.state_dict(), f"rank{rank}.pt")'
    found = watched(tmp_path / "train.py", after=after)
    assert found.mismatch is None
    assert not found.hung
    assert found.data_parallel
    for rank in found.ranks:
        assert len(rank.steps) == 2 * 8
        assert [order.batches for order in rank.orders] == [20, 20]
        assert rank.orders[0].indices != rank.orders[1].indices
        assert rank.summary.backend == "gloo"  # there is no GPU for the one it asked for
        assert {call.op for call in rank.collectives} == {
            "DDP buffer broadcast", "DDP gradient reduction",
        }  # fmt: skip
        assert {Path(w.path).name for w in rank.writes if w.step} == {f"rank{rank.rank}.pt"}
    one, other = (set(rank.orders[0].indices) for rank in found.ranks)
    assert not one & other
    assert all(
        a.parameters == b.parameters for a, b in zip(*(r.weights for r in found.ranks), strict=True)
    )
    first, _ = found.first_steps
    assert first.gradients.keys() == first.weights.keys()


@pytest.mark.slow
def test_a_rank_that_waits_for_ever_is_named(tmp_path: Path) -> None:
    found = watched(tmp_path / "train.py", after="rank == 0 and dist.barrier()")
    assert found.hung
    mismatch = found.mismatch
    assert mismatch is not None
    assert {mismatch.rank, mismatch.other_rank} == {0, 1}


@pytest.mark.slow
def test_a_script_that_raises_on_a_rank_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(RanksError, match=r"train\.py:\d+.*ValueError: no luck.*rank 1 of 2"):
        watched(tmp_path / "train.py", before="if rank == 1: raise ValueError('no luck')")


SPAWNS = """
import os
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main(rank, world):
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29512")
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = fully_shard(nn.Linear(5, 3), mesh=init_device_mesh("cpu", (world,)))
    data = TensorDataset(torch.randn(64, 5), torch.arange(64) % 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in DataLoader(data, 4, sampler=DistributedSampler(data)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


if __name__ == "__main__":
    mp.spawn(main, args=(2,), nprocs=2)
"""


@pytest.mark.slow
def test_processes_that_the_script_starts_are_followed_and_their_shards_joined(
    tmp_path: Path,
) -> None:
    path = tmp_path / "train.py"
    path.write_text(SPAWNS)
    settings = Settings(nproc_per_node=2, device="cpu", check_timeout=120)
    found = ranks.observed(Job(path=str(path), settings=settings), overlay=False)
    assert [len(rank.steps) for rank in found.ranks] == [8, 8]
    assert found.data_parallel
    for step in found.first_steps:
        assert {name: tuple(w.shape) for name, w in step.weights.items()} == {
            "weight": (3, 5), "bias": (3,),
        }  # fmt: skip
        assert step.gradients["weight"].abs().amax(1).gt(0).all()


def test_the_only_process_finds_the_environment_of_a_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with ranks.alone("train.py"):
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
        assert int(os.environ["MASTER_PORT"]) > 0
    assert os.environ["RANK"] == "5"
    assert "MASTER_PORT" not in os.environ
