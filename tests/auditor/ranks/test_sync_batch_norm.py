"""SyncBatchNorm on ranks without a GPU: what one process computes on all their rows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from nnaudit.ranks.sync_batch_norm import sync_batch_norm_without_gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch's own is used")


def network(momentum: float | None = 0.1, affine: bool = True) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
    return norm


def rows() -> Tensor:
    return 100.0 + torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def trained(norm: nn.Module, values: Tensor) -> dict[str, Any]:
    given = values.clone().requires_grad_()
    output = norm(given)
    output.pow(3).sum().backward()
    weights = {f"gradient of {name}": p.grad for name, p in norm.named_parameters()}
    return {"output": output.detach(), "input": given.grad, **weights, **dict(norm.named_buffers())}


def rank(number: int, meeting: str, momentum: float | None, affine: bool, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=2)
    norm = nn.SyncBatchNorm.convert_sync_batchnorm(network(momentum, affine))
    part = rows()[:2] if number == 0 else rows()[2:]
    with sync_batch_norm_without_gpu():
        torch.save(trained(norm, part), Path(folder) / f"{number}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("momentum", "affine"),
    [(0.1, True), pytest.param(None, False, marks=pytest.mark.exhaustive)],
)
def test_two_ranks_compute_what_one_process_does(
    momentum: float | None, affine: bool, tmp_path: Path
) -> None:
    words = (f"file://{tmp_path}/meeting", momentum, affine, str(tmp_path))
    multiprocessing.spawn(rank, words, nprocs=2)
    one, two = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    whole = trained(copy.deepcopy(network(momentum, affine)), rows())
    for name, wanted in whole.items():
        by_row = name in ("output", "input")
        found = torch.cat([one[name], two[name]]) if by_row else one[name]
        if name.startswith("gradient"):
            found = one[name] + two[name]
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, msg=name)


def test_a_network_that_holds_it_is_wrapped(tmp_path: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        with sync_batch_norm_without_gpu():
            norm = nn.SyncBatchNorm.convert_sync_batchnorm(network())
            wrapped = nn.parallel.DistributedDataParallel(norm)
            torch.testing.assert_close(wrapped(rows()), network()(rows()), rtol=1e-3, atol=1e-4)
    finally:
        distributed.destroy_process_group()


def test_outside_a_process_group_it_is_torchs_own() -> None:
    norm = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    with sync_batch_norm_without_gpu():
        torch.testing.assert_close(norm(rows()), network()(rows()))
