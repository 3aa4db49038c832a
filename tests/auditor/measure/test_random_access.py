from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from nnaudit.errors import UserCodeError
from nnaudit.measure.random_access import RandomAccess


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class OwnLoader(DataLoader[Any]):
    def __iter__(self) -> Any:
        return super().__iter__()


def data(n: int = 20) -> TensorDataset:
    return TensorDataset(torch.arange(n).float(), torch.arange(n))


def access(*args: Any, **kwargs: Any) -> RandomAccess:
    found = RandomAccess.of(DataLoader(*args, **kwargs))
    assert found is not None
    return found


@pytest.mark.parametrize("loader", [DataLoader(Stream()), OwnLoader(data()), [1, 2], None])
def test_there_is_none_where_it_would_mislead(loader: Any) -> None:
    assert RandomAccess.of(loader) is None


def test_whose_order_it_is() -> None:
    assert access(data()).sequential
    assert access(data(), shuffle=True).shuffles
    assert access(data(), sampler=SubsetRandomSampler([1, 2])).shuffles
    batching = BatchSampler(RandomSampler(data()), 4, drop_last=False)
    assert access(data(), batch_sampler=batching).torch_sampler
    own = [[0, 1], [2, 3]]
    assert not access(data(), batch_sampler=own).torch_sampler
    assert access(data(), batch_size=None).sequential


def test_an_epoch_s_indices_without_loading() -> None:
    class Untouchable(Dataset[Any]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> Any:
            raise AssertionError

    assert access(Untouchable(), 4).index_batches() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert access(Untouchable(), 4, drop_last=True).index_batches()[-1] == [4, 5, 6, 7]
    assert access(Untouchable(), batch_size=None).index_batches()[:2] == [[0], [1]]
    assert len(access(data(100), 1).index_batches(most=7)) == 7


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_size": None}])
def test_a_fetched_batch_is_the_loader_s(options: dict[str, Any]) -> None:
    loader = DataLoader(data(), **options)
    found = RandomAccess(loader)
    for indices, batch in zip(found.index_batches(), loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found.fetch(indices), batch, strict=True))


def test_a_fetch_uses_what_the_data_set_offers_for_many() -> None:
    class Many(TensorDataset):
        def __getitems__(self, indices: list[int]) -> Any:
            return [(torch.tensor(-1.0), torch.tensor(i)) for i in indices]

    x, y = access(Many(torch.zeros(5), torch.zeros(5)), 2).fetch([3, 1])
    assert x.tolist() == [-1, -1]
    assert y.tolist() == [3, 1]


def test_errors_in_the_data_set_are_the_user_s() -> None:
    with pytest.raises(UserCodeError):
        access(data(), 2).fetch([99])


def test_columns_of_what_lies_in_memory() -> None:
    columns = access(data(), 4).columns()
    assert columns is not None
    assert [path for path, _ in columns] == ["[0]", "[1]"]
    part = access(Subset(Subset(data(), range(0, 20, 2)), [1, 3]), 4).columns()
    assert part is not None
    assert part[1][1].tolist() == [2, 6]


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(data(), sampler=SubsetRandomSampler([1, 2])),
        lambda: DataLoader(data(), collate_fn=lambda rows: rows),
        lambda: DataLoader(data(), batch_size=None),
        lambda: DataLoader([1, 2, 3]),  # type: ignore[arg-type]
        lambda: DataLoader(data(), batch_sampler=[[0, 1]]),
    ],
)
def test_no_columns_where_they_are_not_what_is_trained_on(loader: Any) -> None:
    assert RandomAccess(loader()).columns() is None


def test_spread_over_an_epoch() -> None:
    assert access(data(100), 10).spread(4) == [0, 25, 50, 75]
    assert access(data(3), 10).spread(9) == [0, 1, 2]
    assert set(access(data(), 4, sampler=[5, 6, 7]).spread(9)) == {5, 6, 7}


def test_a_plain_sampler_beneath_a_plain_batching() -> None:
    assert isinstance(access(data(), 4).sampler, SequentialSampler)


@pytest.mark.parametrize("seedable", [False, True])
def test_the_loader_within_accelerates_is_asked(seedable: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    settings = accelerate.DataLoaderConfiguration(use_seedable_sampler=seedable)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=settings)
    wrapped = accelerator.prepare(DataLoader(data(), 8, shuffle=True))
    found = RandomAccess.of(wrapped)
    assert found is not None
    epochs = [[i for batch in found.index_batches() for i in batch] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    wrapped.skip_batches = 1
    assert RandomAccess.of(wrapped) is None
