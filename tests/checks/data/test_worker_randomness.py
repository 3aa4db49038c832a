from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from nnaudit.checks.data.worker_randomness import WorkerRandomness
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

Draw = Callable[[Any], float]


class Noisy(Dataset[Any]):
    """Rows of numbers with noise from ``draw``; ``rng`` is made once, as many programs do."""

    def __init__(self, draw: Draw, rng: Any = None) -> None:
        self.x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        self.draw, self.rng = draw, rng

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i] + self.draw(self.rng), i % 2


def ask(data: Any, workers: int = 2, **settings: Any) -> Result:
    loader = DataLoader(data, 16, num_workers=workers, **settings)
    target = Target(lambda: nn.Linear(4, 2), lambda: loader)
    return run_check(WorkerRandomness, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def global_torch(rng: Any) -> float:
    return float(torch.randn(()))


def global_numpy(rng: Any) -> float:
    return float(np.random.normal())


def global_python(rng: Any) -> float:
    return random.gauss(0, 1)


def own_numpy(rng: Any) -> float:
    return float(rng.normal())


def own_python(rng: Any) -> float:
    return float(rng.gauss(0, 1))


def own_torch(rng: Any) -> float:
    return float(torch.randn((), generator=rng))


@pytest.mark.parametrize("draw", [global_torch, global_numpy, global_python])
def test_torch_seeds_the_global_generators_by_worker_and_epoch(draw: Draw) -> None:
    assert ask(Noisy(draw), shuffle=True).status is Status.PASS


@pytest.mark.parametrize(
    ("draw", "rng"),
    [
        (own_numpy, np.random.default_rng(0)),
        (own_numpy, np.random.default_rng()),
        (own_numpy, np.random.RandomState(1)),
        (own_python, random.Random(0)),
        (own_torch, torch.Generator().manual_seed(0)),
    ],
)
def test_a_generator_of_the_data_set_is_copied(draw: Draw, rng: Any) -> None:
    result = ask(Noisy(draw, rng), shuffle=True)
    assert result.status is Status.FAIL
    assert "two workers" in result.message
    assert "dataset.rng" in result.message
    assert "get_worker_info().dataset.rng" in result.fix


def test_one_process_has_nothing_to_copy() -> None:
    assert ask(Noisy(own_numpy, np.random.default_rng(0)), workers=0).status is Status.SKIP


def test_a_single_worker_starts_over_in_every_epoch() -> None:
    result = ask(Noisy(own_numpy, np.random.default_rng(0)), workers=1)
    assert result.status is Status.FAIL
    assert "two epochs" in result.message


def test_a_single_persistent_worker_goes_on() -> None:
    data = Noisy(own_numpy, np.random.default_rng(0))
    assert ask(data, workers=1, persistent_workers=True).status is Status.PASS


def seed_all_alike(worker: int) -> None:
    np.random.seed(0)


def seed_by_worker(worker: int) -> None:
    np.random.seed(42 + worker)


def seed_rightly(worker: int) -> None:
    np.random.seed(torch.initial_seed() % 2**32)


def renew(worker: int) -> None:
    get_worker_info().dataset.rng = np.random.default_rng(torch.initial_seed())


def test_a_constant_seed_in_worker_init_fn_fails() -> None:
    result = ask(Noisy(global_numpy), worker_init_fn=seed_all_alike)
    assert result.status is Status.FAIL
    assert "worker_init_fn seeds numpy.random" in result.message


def test_a_seed_by_worker_alone_repeats_in_every_epoch() -> None:
    result = ask(Noisy(global_numpy), worker_init_fn=seed_by_worker)
    assert result.status is Status.FAIL
    assert "two epochs" in result.message


def test_a_constant_seed_of_what_is_not_drawn_from_is_fine() -> None:
    assert ask(Noisy(global_torch), worker_init_fn=seed_by_worker).status is Status.PASS


@pytest.mark.parametrize("init", [seed_rightly, renew])
def test_the_documented_ways_pass(init: Callable[[int], None]) -> None:
    draw = global_numpy if init is seed_rightly else own_numpy
    data = Noisy(draw, np.random.default_rng(0))
    assert ask(data, worker_init_fn=init).status is Status.PASS


class MadeOnFirstUse(Noisy):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self.rng is None:
            self.rng = np.random.default_rng(torch.initial_seed())
        return super().__getitem__(i)


def test_a_generator_made_in_the_worker_is_its_own() -> None:
    assert ask(MadeOnFirstUse(own_numpy)).status is Status.PASS


class ByEpoch(Noisy):
    def set_epoch(self, epoch: int) -> None:
        self.rng = np.random.default_rng(epoch)


def test_numbers_that_follow_the_epoch_are_noted() -> None:
    data = ByEpoch(own_numpy, np.random.default_rng(0))
    assert ask(data, workers=1).status is Status.NOTE


def by_index(rng: Any) -> float:
    return 0.5


@pytest.mark.parametrize("data", [Noisy(by_index), TensorDataset(torch.randn(64, 4))])
def test_a_transform_without_chance_is_skipped(data: Any) -> None:
    assert ask(data).status is Status.SKIP


class Flipped(Noisy):
    """One coin for all items: two results."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i] * (1 if self.rng.random() < 0.5 else -1), i % 2


def test_few_results_prove_little() -> None:
    """Of 8 items a coin each makes 256 results, of one item two."""
    one = Flipped(own_numpy, np.random.default_rng(0))
    assert ask(one, workers=2).status is Status.FAIL
    loader = DataLoader(one, 1, num_workers=2)
    target = Target(lambda: nn.Linear(4, 2), lambda: loader)
    audit = Audit(DirectLoop(target, torch.device("cpu"), seed=0))
    assert run_check(WorkerRandomness, audit).status is Status.INCONCLUSIVE


def mixed_up(items: list[Any]) -> tuple[Tensor, Tensor]:
    x = torch.stack([x for x, _ in items])
    y = torch.tensor([y for _, y in items])
    return x.lerp(x[torch.randperm(len(x))], float(np.random.beta(0.4, 0.4))), y


def test_mixing_in_the_collate_function_is_seen_too() -> None:
    data = Noisy(by_index)
    assert ask(data, collate_fn=mixed_up).status is Status.PASS
    assert (
        ask(data, collate_fn=mixed_up, worker_init_fn=seed_everything_alike).status is Status.FAIL
    )


def seed_everything_alike(worker: int) -> None:
    np.random.seed(1)
    torch.manual_seed(1)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for i in range(64):
            yield torch.randn(4), i % 2


def test_streams_are_left_to_others() -> None:
    assert ask(Stream()).status is Status.SKIP


class ReadOnce(Noisy):
    """Forgets an item that has been read."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self.x[i].isnan().any():
            raise OSError("the archive is at its end")
        item = super().__getitem__(i)
        self.x[i] = torch.nan
        return item


def test_workers_that_raise_leave_it_open() -> None:
    result = ask(ReadOnce(global_torch), workers=1)
    assert result.status is Status.INCONCLUSIVE
    assert "workers raised OSError" in result.message
