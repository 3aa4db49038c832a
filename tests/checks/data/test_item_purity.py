"""DATA116: data sets that reading an item changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from nnaudit.checks.data.item_purity import ItemPurity
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.item_reads import ItemReads
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def judged(reads: ItemReads | None) -> Result:
    loop = SimpleNamespace(train_loader=None, locate=lambda thing: None)
    return ItemPurity().run(cast(Audit, SimpleNamespace(probe=lambda probe: reads, loop=loop)))


def test_items_that_differ_by_what_was_written_fail() -> None:
    result = judged(ItemReads(8, 8, ("dataset.images",)))
    assert result.status is Status.FAIL
    assert "dataset.images was written to" in result.message


def test_items_that_are_the_same_again_pass() -> None:
    assert judged(ItemReads(8, 0, ())).status is Status.PASS
    assert judged(None).status is Status.SKIP


class Images(Dataset[Any]):
    """Pictures held as one array, each read by ``read``."""

    def __init__(self, read: Any, store: Any) -> None:
        self.read, self.images = read, store
        self.cache, self.known = np.zeros((40, 6, 6), np.float32), np.zeros(40, bool)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        return torch.as_tensor(self.read(self, i)).clone(), i % 2


def centred(data: Images, i: int) -> Any:
    image = data.images[i]
    image -= 0.5
    return image


def erased(data: Images, i: int) -> Any:
    image = data.images[i]
    at = np.random.randint(0, 4)
    image[at : at + 2] = 0
    return image


def copied(data: Images, i: int) -> Any:
    image = data.images[i].copy()
    image[np.random.randint(0, 6)] = 0
    return image


def cached(data: Images, i: int) -> Any:
    if not data.known[i]:
        data.cache[i], data.known[i] = copied(data, i), True
    return data.cache[i]


def cached_and_random(data: Images, i: int) -> Any:
    return cached(data, i) + np.random.default_rng().normal()  # of the system's own randomness


def counted(data: Images, i: int) -> Any:
    data.images[39] += 1  # a note that no other item shows
    return data.images[i % 38] * 2


def audited(read: Any, *, tensor: bool = False, part: bool = False) -> tuple[Result, bool]:
    store = np.random.default_rng(0).random((40, 6, 6)).astype(np.float32)
    data = Images(read, torch.from_numpy(store) if tensor else store)
    before = store.copy()
    rows: Any = Subset(data, range(5, 35)) if part else data
    target = Target(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2)),
        DataLoader(rows, batch_size=8, shuffle=True),
        loss=nn.functional.cross_entropy,
    )
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    store[:] = before  # setting up may have read an item
    result = run_check(ItemPurity, Audit(loop))
    return result, bool(np.array_equal(store, before))


@pytest.mark.parametrize("read", [centred, erased])
@pytest.mark.parametrize("tensor", [False, True])
def test_writing_into_the_stored_array_fails_and_leaves_no_trace(read: Any, tensor: bool) -> None:
    result, untouched = audited(read, tensor=tensor)
    assert result.status is Status.FAIL, result.message
    assert untouched
    assert audited(read, part=True)[0].status is Status.FAIL


@pytest.mark.parametrize("read", [copied, cached, cached_and_random, counted])
def test_copies_caches_and_counts_pass(read: Any) -> None:
    assert audited(read)[0].status is Status.PASS
