from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from nnaudit.checks.data.shuffling import Shuffling, clumps_of, drift_of
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.base import Step
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.epoch_targets import Targets
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

CPU = torch.device("cpu")


class Net(nn.Module):
    """Takes anything: the order of the data does not depend on the network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Any) -> Tensor:
        return self.weight


def ask(loader: Any, model: type[nn.Module] = Net, seed: int = 0) -> Result:
    return run_check(Shuffling, Audit(DirectLoop(Target(model, loader), CPU, seed=seed), seed=seed))


def digits(n: int = 1200, classes: int = 10, features: int = 12) -> tuple[Tensor, Tensor]:
    """Rows that depend on their class, sorted by it."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(n) * classes // n
    return torch.randn(n, features, generator=generator) + 0.3 * y[:, None], y


def mixed(n: int = 1200, classes: int = 10) -> tuple[Tensor, Tensor]:
    """The same in an order that is random, and fixed."""
    x, y = digits(n, classes)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(4))
    return x[order], y[order]


class Drawn(Dataset[Any]):
    """Items made of ``pick(i)``, as often as they are asked for."""

    def __init__(self, n: int, pick: Callable[[int], Any]) -> None:
        self.n, self.pick = n, pick

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return self.pick(i)


class Stream(IterableDataset[Any]):
    def __init__(self, rows: Callable[[], Iterator[Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return self.rows()


class Ordered(Sampler[Any]):
    """A sampler of the user's own: whatever ``order`` returns."""

    def __init__(self, n: int, order: Callable[[], list[Any]]) -> None:
        self.n, self.order = n, order

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order())


def buffered(size: int, x: Tensor, y: Tensor) -> Stream:
    """Read the rows in order through a shuffle buffer of ``size``."""

    def rows() -> Iterator[Any]:
        held: list[int] = []
        for i in range(len(y)):
            if len(held) < size:
                held.append(i)
                continue
            j = random.randrange(size)
            yield x[held[j]], y[held[j]]
            held[j] = i
        random.shuffle(held)
        for i in held:
            yield x[i], y[i]

    return Stream(rows)


def p_times_k(y: Tensor, p: int = 4, k: int = 8, count: int = 40) -> Ordered:
    groups = [(y == c).nonzero().flatten() for c in y.unique()]

    def order() -> list[Any]:
        return [
            [
                int(i)
                for c in torch.randperm(len(groups))[:p].tolist()
                for i in groups[c][torch.randperm(len(groups[c]))[:k]]
            ]
            for _ in range(count)
        ]

    return Ordered(count, order)


def buckets(lengths: Tensor, size: int = 32) -> Ordered:
    """Batches of rows of similar length, in random order."""

    def order() -> list[Any]:
        by_length = (lengths + torch.rand(len(lengths))).argsort()
        batches = [part.tolist() for part in by_length.split(size)]
        random.shuffle(batches)
        return batches

    return Ordered(-(-len(lengths) // size), order)


def crop(x: Tensor) -> Tensor:
    return torch.roll(x, int(torch.randint(-1, 2, ()))) + 0.05 * torch.randn_like(x)


def moved(pixels: NDArray[np.float64]) -> Tensor:
    """Return a picture, up to two pixels from where it was and perhaps mirrored."""
    shift = tuple(torch.randint(-2, 3, (2,)).tolist())
    picture = torch.tensor(pixels, dtype=torch.float32).reshape(1, 8, 8).roll(shift, (1, 2))
    return picture.flip(2) if torch.rand(()) < 0.5 else picture


class Graph:
    """A batch whose rows cannot be taken apart."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


def graphs(rows: list[Any]) -> Graph:
    nodes = torch.cat([x.repeat(1 + int(y) % 3, 1) for x, y in rows])
    return Graph(nodes, torch.stack([y for _, y in rows]))


def loaders_in_order() -> dict[str, Callable[[], Any]]:
    """Healthy loaders, by a name that says what is special about them."""
    x, y = digits()
    data = TensorDataset(x, y)
    token = torch.randint(50, (400, 17))
    seeded = torch.Generator().manual_seed(7)
    quantity = x[:, 0] + torch.arange(len(x)) / 100
    several = (torch.rand(len(x), 4) < 0.3).float()
    classes = torch.arange(1200) % 400
    return {
        "shuffle": lambda: DataLoader(data, 32, shuffle=True),
        "seeded generator": lambda: DataLoader(data, 32, shuffle=True, generator=seeded),
        "with replacement": lambda: DataLoader(data, 32, sampler=RandomSampler(data, True)),
        "weighted": lambda: DataLoader(
            data, 32, sampler=WeightedRandomSampler((1.0 + y).tolist(), len(y))
        ),
        "weighted to few": lambda: DataLoader(
            data, 32, sampler=WeightedRandomSampler(((y == 3) + 1e-6).tolist(), len(y))
        ),
        "subset sampler": lambda: DataLoader(data, 32, sampler=SubsetRandomSampler(range(700))),
        "subset": lambda: DataLoader(Subset(data, range(0, 1200, 2)), 32, shuffle=True),
        "p x k": lambda: DataLoader(data, batch_sampler=p_times_k(y)),
        "length buckets": lambda: DataLoader(data, batch_sampler=buckets(10 * y + 5)),
        "batch size 1": lambda: DataLoader(data, 1, shuffle=True),
        "workers": lambda: DataLoader(data, 32, shuffle=True, num_workers=1),
        "augmented": lambda: DataLoader(
            Drawn(1200, lambda i: (crop(x[i]), y[i])), 32, shuffle=True
        ),
        "dicts": lambda: DataLoader(
            Drawn(1200, lambda i: {"x": x[i], "label": y[i]}), 32, shuffle=True
        ),
        "graphs": lambda: DataLoader(data, 32, shuffle=True, collate_fn=graphs),
        "regression": lambda: DataLoader(TensorDataset(x, quantity), 32, shuffle=True),
        "regression column": lambda: DataLoader(
            TensorDataset(x, quantity[:, None]), 32, shuffle=True
        ),
        "several labels": lambda: DataLoader(TensorDataset(x, several), 32, shuffle=True),
        "soft labels": lambda: DataLoader(
            TensorDataset(x, torch.softmax(x[:, :5], 1)), 32, shuffle=True
        ),
        "segmentation": lambda: DataLoader(
            TensorDataset(x, (x > 0).long()), 32, shuffle=True
        ),
        "inputs only": lambda: DataLoader(TensorDataset(x), 32, shuffle=True),
        "rare class": lambda: DataLoader(TensorDataset(x, (y == 0).long()), 32, shuffle=True),
        "many classes": lambda: DataLoader(TensorDataset(x, classes), 32, shuffle=True),
        "one class": lambda: DataLoader(TensorDataset(x, 0 * y), 32, shuffle=True),
        "tokens": lambda: DataLoader(
            TensorDataset(token[:, :-1], token[:, 1:]), 32, shuffle=True
        ),
        "eight rows": lambda: DataLoader(TensorDataset(x[:8], y[:8]), 2, shuffle=True),
        "full batch": lambda: DataLoader(data, 1200),
        "made up on the spot": lambda: DataLoader(
            Drawn(1200, lambda i: (torch.randn(6), torch.randint(3, ()))), 32
        ),
        "made up, class by index": lambda: DataLoader(
            Drawn(1200, lambda i: (torch.randn(6) + i % 4, torch.tensor(i % 4))), 32
        ),
        "stream": lambda: DataLoader(buffered(600, *mixed()), 32),
        "whole batches": lambda: DataLoader(
            Stream(lambda: ((x[rows], y[rows]) for rows in torch.randperm(1200).split(40))),
            batch_size=None,
        ),
        "all of the data in every step": lambda: [(x[:40], torch.sort(y[:40])[0])] * 60,
        "reshuffled list": lambda: Shuffled(x, y),
    }  # fmt: skip


class Shuffled:
    """A loader without torch's: a class with an ``__iter__``."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        for rows in np.array_split(np.random.permutation(len(self.y)), 30):
            yield self.x[rows], self.y[rows]


@pytest.mark.parametrize("name", loaders_in_order())
def test_a_healthy_order_passes(name: str) -> None:
    torch.manual_seed(0)
    result = ask(loaders_in_order()[name], Whole if name == "graphs" else Net)
    assert result.status is Status.PASS, result.message


class Whole(Net):
    def forward(self, x: Any = None, **others: Any) -> Tensor:
        return self.weight


def loaders_out_of_order() -> dict[str, Callable[[], Any]]:
    x, y = digits()
    still_x, still_y = mixed()
    quantity = x[:, 0] + torch.arange(len(x)) / 100
    waves = torch.sin(torch.arange(1200) / 60) + 0.05 * torch.randn(1200)
    days = torch.stack([torch.arange(1200.0).roll(3 * k) % (k + 3) for k in range(6)], 1)
    three = torch.nn.functional.one_hot(y % 3, 3).float()
    pictures, numbers = load_digits(return_X_y=True)
    return {
        "sorted": lambda: DataLoader(TensorDataset(x, y), 32),
        "sorted, augmented": lambda: DataLoader(
            Drawn(1200, lambda i: (crop(x[i]), y[i])), 32
        ),
        "sorted, large batches": lambda: DataLoader(TensorDataset(x, y), 256),
        "sorted, few rows": lambda: DataLoader(TensorDataset(x[::8], y[::8]), 16),
        "sorted, rare class": lambda: DataLoader(TensorDataset(x, (y == 0).long()), 32),
        "sorted, one-hot": lambda: DataLoader(
            TensorDataset(x, torch.nn.functional.one_hot(y).float()), 32
        ),
        "sorted, dicts": lambda: DataLoader(
            Drawn(1200, lambda i: {"x": x[i], "labels": y[i]}), 32
        ),
        "sorted, binary column": lambda: DataLoader(
            TensorDataset(x, (y > 4).float()[:, None]), 32
        ),
        "sorted, large": lambda: DataLoader(
            Drawn(60_000, lambda i: (torch.randn(3), torch.tensor(i // 6000))), 64
        ),
        "folders one after the other": lambda: DataLoader(
            ConcatDataset([TensorDataset(x[y == c], y[y == c]) for c in range(10)]), 32
        ),
        "classes in pairs": lambda: DataLoader(
            TensorDataset(torch.randn(2400, 5), still_y.repeat_interleave(2)), 32
        ),
        "labels in blocks": lambda: DataLoader(TensorDataset(x, three), 32),
        "sorted by quantity": lambda: DataLoader(TensorDataset(x, quantity), 32),
        "quantity in waves": lambda: DataLoader(TensorDataset(days, waves), 32),
        "stream sorted": lambda: DataLoader(buffered(1, x, y), 32),
        "stream, buffer of 60": lambda: DataLoader(buffered(60, x, y), 32),
        "stream, large, buffer of 500": lambda: DataLoader(buffered(500, *digits(9000)), 64),
        "sorted list of batches": lambda: list(zip(x.split(32), y.split(32), strict=True)),
        "never shuffled": lambda: DataLoader(TensorDataset(still_x, still_y), 32),
        "never shuffled, augmented": lambda: DataLoader(
            Drawn(1200, lambda i: (crop(still_x[i]), still_y[i])), 32
        ),
        "never shuffled, pictures moved": lambda: DataLoader(
            Drawn(600, lambda i: (moved(pictures[i]), int(numbers[i]))), 32
        ),
        "never shuffled, inputs only": lambda: DataLoader(TensorDataset(still_x), 32),
        "never shuffled, segmentation": lambda: DataLoader(
            TensorDataset(still_x, (still_x > 0).long()), 32
        ),
        "never shuffled, one class": lambda: DataLoader(TensorDataset(still_x, 0 * y), 32),
    }  # fmt: skip


@pytest.mark.parametrize("name", loaders_out_of_order())
def test_an_unshuffled_training_set_fails(name: str) -> None:
    torch.manual_seed(0)
    result = ask(loaders_out_of_order()[name])
    assert result.status is Status.FAIL, result.message
    assert result.fix


def windows(series: Tensor, length: int = 16) -> TensorDataset:
    x = series.unfold(0, length + 1, 1)
    return TensorDataset(x[:, :-1], x[:, -1])


class Counting:
    """A loader like accelerate's: it tells its sampler how many epochs it has ended."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader, self.ended = loader, 0

    def set_epoch(self, epoch: int) -> None:
        self.loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.set_epoch(self.ended)
        yield from self.loader
        self.ended += 1


def loaders_that_mean_it() -> dict[str, tuple[Callable[[], Any], tuple[Status, ...]]]:
    x, y = digits()
    still_x, still_y = mixed()
    walk = torch.randn(800).cumsum(0)
    walks = torch.randn(800, 6).cumsum(0)
    token = torch.randint(50, (400, 17))
    text = torch.randint(50, (8, 641))
    reseeded = Ordered(
        1200, lambda: torch.randperm(1200, generator=torch.Generator().manual_seed(1)).tolist()
    )
    distributed = DistributedSampler(TensorDataset(x, y), num_replicas=1, rank=0)
    mild = (Status.WARN,)
    return {
        "overlapping windows": (lambda: DataLoader(windows(walk), 32), mild),
        "windows with channels": (
            lambda: DataLoader(TensorDataset(walks.unfold(0, 8, 2), walks[7::2, 0]), 32),
            mild,
        ),
        "moments of one recording": (lambda: DataLoader(TensorDataset(walks, walk), 32), mild),
        "states of one recording": (
            lambda: DataLoader(TensorDataset(walks, (walk > walk.median()).long()), 32),
            mild,
        ),
        "text in blocks": (
            lambda: DataLoader(TensorDataset(token[:, :-1], token[:, 1:]), 32),
            mild,
        ),
        "stream in a fixed order": (lambda: DataLoader(buffered(1, still_x, still_y), 32), mild),
        "list of batches": (
            lambda: list(zip(still_x.split(32), still_y.split(32), strict=True)),
            mild,
        ),
        "re-seeded sampler": (
            lambda: DataLoader(TensorDataset(x, y), 32, sampler=reseeded),
            mild,
        ),
        "few rows in order": (lambda: DataLoader(TensorDataset(x[::80], y[::80]), 4), mild),
        "batches of one class": (
            lambda: DataLoader(TensorDataset(x, y), batch_sampler=p_times_k(y, 1, 32)),
            mild,
        ),
        "waits for set_epoch": (
            lambda: DataLoader(TensorDataset(x, y), 32, sampler=distributed),
            (Status.NOTE,),
        ),
        "tells the epoch itself": (
            lambda: Counting(DataLoader(TensorDataset(x, y), 32, sampler=distributed)),
            (Status.PASS,),
        ),
        "easy first": (
            lambda: DataLoader(
                TensorDataset(x, y),
                32,
                sampler=Ordered(1200, lambda: (y + 6 * torch.rand(1200)).argsort().tolist()),
            ),
            (Status.NOTE, Status.WARN),
        ),
        "text that goes on": (
            lambda: [(text[:, i : i + 16], text[:, i + 1 : i + 17]) for i in range(0, 640, 16)],
            (Status.PASS,),
        ),
    }


@pytest.mark.parametrize("name", loaders_that_mean_it())
def test_an_order_that_may_be_meant_does_not_fail(name: str) -> None:
    torch.manual_seed(0)
    loader, allowed = loaders_that_mean_it()[name]
    result = ask(loader)
    assert result.status in allowed, result.message


class TwoEpochs(DirectLoop):
    """A loop whose user's code between two epochs is ``between``."""

    between: Callable[[Any], object]

    def next_epoch(self, batch: Any) -> Step | None:
        self.between(self.train_loader.sampler)
        return self.step(batch)


def _renumbered(sampler: Any) -> None:
    sampler.epoch = 1


@pytest.mark.parametrize(
    ("between", "status"),
    [
        (lambda sampler: None, Status.WARN),
        (lambda sampler: sampler.set_epoch(0), Status.NOTE),
        (lambda sampler: sampler.set_epoch(1), Status.PASS),
        (_renumbered, Status.PASS),
    ],
)
def test_a_sampler_that_is_never_told_the_epoch_warns(
    between: Callable[[Any], object], status: Status
) -> None:
    torch.manual_seed(0)
    x, y = digits()
    rows = TensorDataset(x, y)
    sampler = DistributedSampler(rows, num_replicas=1, rank=0)
    given = Target(lambda: nn.Linear(x.shape[1], 10), lambda: DataLoader(rows, 32, sampler=sampler))
    loop = TwoEpochs(given, CPU, 0)
    loop.between = between
    result = run_check(Shuffling, Audit(loop))
    assert result.status is status
    assert ("set_epoch() is never called" in result.message) == (status is Status.WARN)


def test_a_fixed_order_is_told_from_a_sorted_one() -> None:
    assert "share their class" in ask(loaders_out_of_order()["sorted"]).message
    assert (
        "order is the same in both epochs" in ask(loaders_out_of_order()["never shuffled"]).message
    )
    message = ask(loaders_that_mean_it()["re-seeded sampler"][0]).message
    assert "re-seeded every epoch" in message


def test_one_class_that_is_all_there_is_is_skipped() -> None:
    x, y = digits(400)
    result = ask(
        lambda: DataLoader(Stream(lambda: ((row, y[0]) for row in torch.randn(400, 3))), 32)
    )
    assert result.status in (Status.SKIP, Status.PASS)
    same = ask(lambda: DataLoader(Stream(lambda: ((x[0], y[0]) for _ in range(400))), 32))
    assert same.status is Status.SKIP


def test_an_endless_stream_of_one_class_is_inconclusive() -> None:
    def rows() -> Iterator[Any]:
        while True:
            yield torch.zeros(2), torch.tensor(1)

    result = ask(lambda: DataLoader(Stream(rows), 512))
    assert result.status is Status.INCONCLUSIVE


def test_what_is_read_is_bounded() -> None:
    read: list[int] = []

    def item(i: int) -> Any:
        read.append(i)
        return torch.zeros(1), torch.tensor(i % 7)

    ask(DataLoader(Drawn(10**6, item), 64, shuffle=True))
    assert len(read) < 2500


def _targets(values: np.ndarray[Any, Any], sizes: list[int]) -> Targets:
    return Targets(values, tuple(sizes), len(values), discrete=True)


@pytest.mark.parametrize("discrete", [True, False])
def test_null_rejection_rate_and_power_of_neighbours(discrete: bool) -> None:
    """Of 2,000 random orders none alarms; a third of the rows still in blocks always does."""
    rng = np.random.default_rng(4)

    def alarms(values: np.ndarray[Any, Any]) -> bool:
        found = clumps_of(Targets(values, (32,) * 20, len(values), discrete))
        assert found is not None
        return found.deviation.z > 4 and found.effect > (0.2 if discrete else 0.3)

    def drawn() -> np.ndarray[Any, Any]:
        return rng.choice(4, 640) if discrete else rng.normal(size=640)

    assert not any(alarms(drawn()) for _ in range(2000))
    for _ in range(100):
        values = np.sort(drawn())
        mixed = rng.choice(640, 210, replace=False)
        values[mixed] = rng.permutation(values[mixed])
        assert alarms(values)


@pytest.mark.parametrize("rows", [True, False])
def test_drift_of_shuffled_batches_is_chance(rows: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        values = rng.choice(5, 640, p=[0.5, 0.2, 0.15, 0.1, 0.05])
        assert drift_of(_targets(values, [32] * 20), rng, rows=rows) is None


def test_drift_of_batches_that_are_not_random_samples_is_chance_too() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        batches = [np.repeat(rng.permutation(10)[:4], 8) for _ in range(40)]
        assert drift_of(_targets(np.concatenate(batches), [32] * 40), rng, rows=False) is None


def test_drift_of_a_mix_that_changes_is_seen() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.choice(3, 320, p=p) for p in ([0.8, 0.1, 0.1], [0.1, 0.1, 0.8])])
    found = drift_of(_targets(values, [32] * 20), rng, rows=False)
    assert found is not None
    assert found.observed - found.mean > 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds", [range(25), pytest.param(range(25, 100), marks=pytest.mark.exhaustive)]
)
def test_no_false_alarm_over_many_seeds(seeds: range) -> None:
    x, y = digits(600, classes=3)
    for seed in seeds:
        torch.manual_seed(seed)
        for loader in (
            DataLoader(TensorDataset(x, y), 16, shuffle=True),
            DataLoader(TensorDataset(x, y), batch_sampler=p_times_k(y, 2, 8)),
            DataLoader(buffered(300, *mixed(600, 3)), 16),
        ):
            result = ask(loader, seed=seed)
            assert result.status is Status.PASS, (seed, result.message)
