from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
    random_split,
)
from torch.utils.data.distributed import DistributedSampler

from nnaudit.checks.data.epoch_coverage import EpochCoverage
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def rows(n: int = 200) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.arange(n) % 2)


def ask(loader: Any, val: Any = None) -> Result:
    target = Target(lambda: nn.Linear(4, 2), lambda: loader, val_loader=val)
    return run_check(EpochCoverage, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class EveryOther(Sampler[int]):
    """A half, and nothing says that it is meant."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(0, self.n, 2))

    def __len__(self) -> int:
        return self.n // 2


class Chosen(EveryOther):
    """The same half, from a list that it was given."""

    def __init__(self, items: list[int]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class PerClass(Sampler[list[int]]):
    """Eight items of each of two classes in a batch, drawn anew, as for metric learning."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(10):
            yield [2 * int(i) + c for c in (0, 1) for i in torch.randint(0, 100, (8,))]


class Buckets(Sampler[list[int]]):
    """Batches of neighbours in random order; the last one is not full."""

    def __init__(self, n: int, size: int, end: int) -> None:
        self.n, self.size, self.end = n, size, end

    def __len__(self) -> int:
        return self.n // self.size

    def __iter__(self) -> Iterator[list[int]]:
        batches = [
            list(range(s, min(s + self.size, self.n))) for s in range(0, self.end, self.size)
        ]
        return iter([batches[i] for i in torch.randperm(len(batches))])


# --- healthy -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(rows(), 16),
        DataLoader(rows(), 16, shuffle=True),
        DataLoader(rows(), 16, shuffle=True, drop_last=True),
        DataLoader(rows(), 199, drop_last=True),
        DataLoader(rows(), 16, sampler=WeightedRandomSampler(torch.ones(200), 200)),
        DataLoader(rows(), 16, sampler=RandomSampler(rows(), num_samples=50)),
        DataLoader(rows(), 16, sampler=RandomSampler(rows(), replacement=True)),
        DataLoader(rows(), 16, sampler=SubsetRandomSampler(range(120))),
        DataLoader(rows(), 16, sampler=Chosen(list(range(0, 200, 2)))),
        DataLoader(rows(), 16, sampler=DistributedSampler(rows(), 1, 0)),
        DataLoader(rows(), batch_sampler=PerClass()),
        DataLoader(rows(), batch_sampler=Buckets(200, 16, 200)),
        DataLoader(rows(), batch_sampler=BatchSampler(RandomSampler(rows()), 7, drop_last=False)),
        DataLoader(rows(), batch_size=None, sampler=BatchSampler(RandomSampler(rows()), 9, False)),
        DataLoader(random_split(rows(), [150, 50])[0], 16, shuffle=True),
    ],
    ids=range(15),
)
def test_loaders_as_they_are_meant_pass(loader: Any) -> None:
    assert ask(loader).status is Status.PASS


def test_the_share_of_one_rank_is_skipped() -> None:
    loader = DataLoader(rows(), 16, sampler=DistributedSampler(rows(), 4, 1))
    assert ask(loader).status is Status.SKIP


def test_a_list_of_batches_has_no_index() -> None:
    assert ask([(torch.randn(8, 4), torch.zeros(8).long())] * 4).status is Status.INCONCLUSIVE


def test_repeated_indices_of_a_subset_are_noted() -> None:
    loader = DataLoader(Subset(rows(), [*range(100), *range(50)]), 16, shuffle=True)
    assert ask(loader).status is Status.NOTE


# --- left out ------------------------------------------------------------------------------------


def test_drop_last_in_a_fixed_order_fails() -> None:
    result = ask(DataLoader(rows(200), 150, drop_last=True))
    assert result.status is Status.FAIL
    assert "50 of 200" in result.message


def test_drop_last_of_little_passes() -> None:
    assert ask(DataLoader(rows(200), 24, drop_last=True)).status is Status.PASS


def test_drop_last_in_a_fresh_order_loses_others_each_time() -> None:
    assert ask(DataLoader(rows(), 90, shuffle=True, drop_last=True)).status is Status.NOTE
    assert ask(DataLoader(rows(), 120, shuffle=True, drop_last=True)).status is Status.WARN


def test_three_epochs_of_three_items_may_be_alike() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        loader = DataLoader(rows(3), 2, shuffle=True, drop_last=True)
        assert ask(loader).status is not Status.FAIL


def test_a_sampler_that_leaves_out_a_half_unasked_is_warned_of() -> None:
    result = ask(DataLoader(rows(), 16, sampler=EveryOther(200)))
    assert result.status is Status.WARN
    assert "100 of 200" in result.message


def test_unless_the_rest_is_for_validation() -> None:
    data = rows()
    val = DataLoader(data, 16, sampler=SubsetRandomSampler(range(1, 200, 2)))
    assert ask(DataLoader(data, 16, sampler=EveryOther(200)), val).status is Status.PASS


def test_a_batch_sampler_that_forgets_the_end_is_warned_of() -> None:
    result = ask(DataLoader(rows(), batch_sampler=Buckets(200, 64, 128)))
    assert result.status is Status.WARN


# --- made for another data set -------------------------------------------------------------------


def test_a_weight_per_class_visits_as_many_items_as_classes() -> None:
    sampler = WeightedRandomSampler(torch.tensor([0.2, 0.8]), 200)
    result = ask(DataLoader(rows(), 16, sampler=sampler))
    assert result.status is Status.FAIL
    assert "2 items" in result.message
    assert "class_weights[labels]" in result.fix


@pytest.mark.parametrize("kind", [RandomSampler, SequentialSampler])
def test_a_sampler_of_the_validation_set_fails(kind: Any) -> None:
    result = ask(DataLoader(rows(), 16, sampler=kind(rows(50))))
    assert result.status is Status.FAIL
    assert "75%" in result.message


def test_a_sampler_of_a_range_is_a_choice_unless_most_is_never_read() -> None:
    def of(count: int) -> DataLoader[Any]:
        return DataLoader(data, 16, sampler=RandomSampler(range(count)))

    data = rows()
    assert ask(of(120)).status is Status.NOTE
    assert ask(of(50)).status is Status.WARN
    rest = DataLoader(data, 16, sampler=SubsetRandomSampler(range(50, 200)))
    assert ask(of(50), rest).status is Status.NOTE


@pytest.mark.parametrize("kind", [RandomSampler, SequentialSampler])
def test_a_list_of_indices_whose_entries_are_not_read_fails(kind: Any) -> None:
    indices = list(range(100, 200))
    result = ask(DataLoader(rows(), 16, sampler=kind(indices)))
    assert result.status is Status.FAIL
    assert "(100, 101, 102, ...), but visits the items 0 to 99" in result.message
    assert ask(DataLoader(rows(), 16, sampler=kind(list(range(150))))).status is Status.NOTE
    assert ask(DataLoader(rows(), 16, sampler=kind(list(range(200))))).status is Status.PASS


@pytest.mark.parametrize(("drawn", "status"), [(60, Status.WARN), (120, Status.PASS)])
def test_weights_of_zero_for_most_items_warn(drawn: int, status: Status) -> None:
    weights = [1.0] * drawn + [0.0] * (200 - drawn)
    loader = DataLoader(rows(), 16, sampler=WeightedRandomSampler(weights, 200))
    assert ask(loader).status is status


# --- len ------------------------------------------------------------------------------------------


class Files(Dataset[Any]):
    """Holds 320 items; ``length`` is what it says."""

    def __init__(self, length: int) -> None:
        self.items = torch.randn(320, 4, generator=torch.Generator().manual_seed(0))
        self.said = (length,)

    def __len__(self) -> int:
        return self.said[0]

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.items[i], i % 2


def test_len_that_counts_batches_fails() -> None:
    result = ask(DataLoader(Files(20), 16, shuffle=True))
    assert result.status is Status.FAIL
    assert "number of batches" in result.message


def test_len_that_is_short_is_warned_of() -> None:
    assert ask(DataLoader(Files(250), 16, shuffle=True)).status is Status.WARN
    assert ask(DataLoader(Files(319), 16, shuffle=True)).status is Status.PASS
    assert ask(DataLoader(Files(320), 16, shuffle=True)).status is Status.PASS


def test_a_class_that_divides_its_own_items_is_not_short() -> None:
    loader = DataLoader(Files(250), 16, shuffle=True)
    assert ask(loader, DataLoader(Files(70), 16)).status is Status.PASS


class Limited(Files):
    def __init__(self) -> None:
        super().__init__(100)
        self.limit = 100


class Drawn(Files):
    """Items at random: its length is that of an epoch."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        k = int(torch.randint(0, 320, ()))
        return self.items[k], k % 2


class Blocks(Dataset[Any]):
    """Blocks of a text."""

    def __init__(self) -> None:
        self.tokens = torch.arange(330)

    def __len__(self) -> int:
        return len(self.tokens) // 8 - 1

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        block = self.tokens[8 * i : 8 * i + 5].float()
        return block[:4], block[1] > 0


@pytest.mark.parametrize("data", [Limited(), Drawn(20), Blocks()])
def test_lengths_that_are_meant_pass(data: Any) -> None:
    assert ask(DataLoader(data, 16, shuffle=True)).status is Status.PASS


# --- streams -------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    """160 items; ``shares`` says whether its workers divide them."""

    def __init__(self, shares: bool, n: int = 160, start: int = 0) -> None:
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
        self.shares, self.start = shares, start

    def items(self) -> Iterator[int]:
        return iter(range(self.start, len(self.x)))

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        chosen = self.items()
        if self.shares and info is not None:
            chosen = islice(chosen, info.id, None, info.num_workers)
        return ((self.x[i], i % 2) for i in chosen)


class Shuffled(Stream):
    def items(self) -> Iterator[int]:
        return iter(torch.randperm(len(self.x)).tolist())


class Endless(Stream):
    def items(self) -> Iterator[int]:
        while True:
            yield from range(len(self.x))


class MadeUp(Stream):
    def __iter__(self) -> Iterator[Any]:
        return ((torch.randn(4), int(torch.randint(2, ()))) for _ in range(160))


class EndlessMadeUp(Stream):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.randn(4), 1


class HalfLost(Stream):
    """Each of two workers takes every fourth item."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        step = 1 if info is None or info.num_workers == 1 else 4
        chosen = range(info.id if info is not None else 0, len(self.x), step)
        return ((self.x[i], i % 2) for i in chosen)


@pytest.mark.parametrize("data", [Stream(False), Shuffled(False), Endless(False)])
def test_a_stream_that_every_worker_reads_fails(data: Any) -> None:
    result = ask(DataLoader(data, 16, num_workers=2))
    assert result.status is Status.FAIL
    assert "not split between workers" in result.message
    assert "islice" in result.fix


def test_a_stream_that_is_shared_passes() -> None:
    assert ask(DataLoader(Stream(True), 16, num_workers=2)).status is Status.PASS


def test_shards_that_lose_a_half_fail() -> None:
    result = ask(DataLoader(HalfLost(True), 16, num_workers=2))
    assert result.status is Status.FAIL
    assert "leave out 80" in result.message


def test_a_stream_for_one_process_is_skipped() -> None:
    assert ask(DataLoader(Stream(False), 16)).status is Status.SKIP
    assert ask(DataLoader(Stream(False), 16, num_workers=1)).status is Status.SKIP


def divide(worker: int) -> None:
    info = get_worker_info()
    info.dataset.shares = True


def test_a_stream_that_worker_init_fn_divides_passes() -> None:
    loader = DataLoader(Stream(False), 16, num_workers=2, worker_init_fn=divide)
    assert ask(loader).status is Status.PASS


class Varied(Stream):
    """Another item each time, in a shuffled order: its number stays, or only its class."""

    def __init__(self, named: bool) -> None:
        super().__init__(False)
        self.named = named

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.x)).tolist()
        return ((self.x[i] + torch.randn(4), i if self.named else i % 2) for i in order)


def test_augmented_items_are_known_by_what_stays() -> None:
    names = ask(DataLoader(Varied(True), 16, num_workers=2))
    assert names.status is Status.FAIL
    assert "each varied" in names.message
    assert ask(DataLoader(Varied(False), 16, num_workers=2)).status is Status.WARN


def test_items_made_up_anew_prove_nothing() -> None:
    assert ask(DataLoader(MadeUp(False), 16, num_workers=2)).status is Status.NOTE
    endless = DataLoader(EndlessMadeUp(False), 64, num_workers=2)
    assert ask(endless).status is Status.INCONCLUSIVE


def test_drop_last_of_every_worker_is_warned_of() -> None:
    loader = DataLoader(Stream(True), 48, num_workers=2, drop_last=True)
    assert ask(loader).status is Status.WARN
