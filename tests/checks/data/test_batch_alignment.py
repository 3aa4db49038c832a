from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from nnaudit.checks.data.batch_alignment import BatchAlignment
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def ask(loader: Any, model: Any = None, **parts: Any) -> Result:
    target = Target(model or (lambda: nn.Linear(4, 2)), lambda: loader, **parts)
    return run_check(BatchAlignment, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class Rows(Dataset[Any]):
    def __init__(self, n: int = 100) -> None:
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], i % 2


class Broken(Rows):
    """Item 77 cannot be read."""

    def __getitem__(self, i: int) -> Any:
        return (None if i == 77 else self.x[i]), i % 2


def keeps_labels(items: list[Any]) -> Any:
    x = torch.stack([x for x, _ in items if x is not None])
    return x, torch.tensor([y for _, y in items])


def drops_both(items: list[Any]) -> Any:
    return keeps_labels([item for item in items if item[0] is not None])


# --- order ---------------------------------------------------------------------------------------


class Sentences(Dataset[Any]):
    """Token ids of various lengths, the label in no relation to the length."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.ids = [torch.randint(1, 50, (3 + i % 17,), generator=g) for i in range(128)]
        self.labels = torch.randint(0, 3, (128,), generator=g).tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Any:
        return self.ids[i], self.labels[i]


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(r) for r in rows])


def sorts_the_sentences_alone(items: list[Any]) -> Any:
    ids = sorted((ids for ids, _ in items), key=len, reverse=True)
    return *padded(ids), torch.tensor([label for _, label in items])


def sorts_whole_items(items: list[Any]) -> Any:
    items = sorted(items, key=lambda item: len(item[0]), reverse=True)
    return *padded([ids for ids, _ in items]), torch.tensor([label for _, label in items])


def says_how_it_sorted(items: list[Any]) -> Any:
    order = sorted(range(len(items)), key=lambda i: -len(items[i][0]))
    ids, lengths = padded([items[i][0] for i in order])
    return ids, lengths, torch.tensor(order), torch.tensor([label for _, label in items])


def pads_only(items: list[Any]) -> Any:
    return *padded([ids for ids, _ in items]), torch.tensor([label for _, label in items])


def adds_negatives(items: list[Any]) -> Any:
    ids, lengths = padded([ids for ids, _ in items])
    return ids, lengths, ids.roll(1, 0), torch.arange(len(items))


def lists_the_sums(items: list[Any]) -> Any:
    ids, lengths = padded([ids for ids, _ in items])
    return ids, lengths, torch.unique(torch.tensor([hash(tuple(row.tolist())) for row, _ in items]))


def draws(items: list[Any]) -> Any:
    ids, lengths = padded(sorted((ids for ids, _ in items), key=len))
    return ids, lengths, torch.rand(len(items))


def test_sentences_sorted_without_their_labels_fail() -> None:
    result = ask(DataLoader(Sentences(), 16, collate_fn=sorts_the_sentences_alone))
    assert result.status is Status.FAIL
    assert "sorts batch[0] but leaves batch[2]" in result.message


@pytest.mark.parametrize(
    "collate",
    [
        sorts_whole_items,
        says_how_it_sorted,
        pads_only,
        adds_negatives,
        lists_the_sums,
        draws,
    ],
)
def test_near_misses_of_order_pass(collate: Any) -> None:
    for start in range(20):
        data = Subset(Sentences(), range(start, 128))
        assert ask(DataLoader(data, 16, collate_fn=collate)).status is Status.PASS


# --- lengths -------------------------------------------------------------------------------------


def test_a_label_without_its_image_fails() -> None:
    result = ask(DataLoader(Broken(), 16, collate_fn=keeps_labels))
    assert result.status is Status.FAIL
    assert "batch[0]: 15 rows, batch[1]: 16 rows" in result.message
    assert "with all fields cut to the same length it runs" in result.message


def test_a_label_dropped_with_its_image_passes() -> None:
    assert ask(DataLoader(Broken(), 16, collate_fn=drops_both)).status is Status.PASS


def test_stacked_items_need_not_be_read() -> None:
    assert ask(DataLoader(Rows(), 16, shuffle=True)).status is Status.PASS


def test_every_batch_too_long_fails_too() -> None:
    x, y = torch.randn(96, 4), torch.arange(96) % 2
    loader = [(x[s : s + 16], y[s : s + 17]) for s in range(0, 64, 16)]
    assert ask(loader).status is Status.FAIL


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.EmbeddingBag(20, 8), nn.Linear(8, 2)

    def forward(self, words: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.embed(words, offsets))


def test_ragged_batches_pass() -> None:
    def bag(items: list[Any]) -> Any:
        words = [torch.arange(1 + i % 5) for i in range(len(items))]
        starts = [0, *torch.tensor([len(w) for w in words]).cumsum(0).tolist()[:-1]]
        return torch.cat(words), torch.tensor(starts), torch.tensor([y for _, y in items])

    assert ask(DataLoader(Rows(), 16, collate_fn=bag), Bags).status is Status.PASS


def test_packed_batches_pass() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.head = nn.GRU(4, 8), nn.Linear(8, 2)

        def forward(self, packed: Any) -> Tensor:
            return self.head(self.read(packed)[1][0])

    def pack(items: list[Any]) -> Any:
        rows = [x.repeat(1 + i % 3, 1) for i, (x, _) in enumerate(items)]
        packed = nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
        return packed, torch.tensor([y for _, y in items])

    def step(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    loader = DataLoader(Rows(), 16, collate_fn=pack)
    assert ask(loader, Reader, training_step=step).status is Status.PASS


def test_graphs_of_different_sizes_pass() -> None:
    def graphs(items: list[Any]) -> Any:
        sizes = torch.tensor([2 + i % 4 for i in range(len(items))])
        nodes = torch.randn(int(sizes.sum()), 4)
        owner = torch.repeat_interleave(torch.arange(len(items)), sizes)
        return {"x": nodes, "owner": owner, "y": torch.tensor([y for _, y in items])}

    def step(model: nn.Module, batch: Any) -> Tensor:
        out = torch.zeros(len(batch["y"]), 2).index_add(0, batch["owner"], model(batch["x"]))
        return F.cross_entropy(out, batch["y"])

    loader = DataLoader(Rows(), 16, collate_fn=graphs)
    assert ask(loader, training_step=step).status is Status.PASS


def test_two_domains_of_which_one_ends_earlier_are_noted() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).square().mean() + model(batch[1]).abs().mean()

    loader = [(torch.randn(16, 4), torch.randn(16, 4)) for _ in range(9)]
    loader.append((torch.randn(16, 4), torch.randn(5, 4)))
    assert ask(loader, training_step=step).status is Status.NOTE


def test_a_step_that_fails_anyhow_proves_nothing() -> None:
    loader = DataLoader(Broken(), 16, collate_fn=keeps_labels)

    def step(model: nn.Module, batch: Any) -> Tensor:
        if bool((batch[0] == Broken().x[76]).all(1).any()):
            raise ValueError("something else")
        return F.cross_entropy(model(batch[0]), batch[1][: len(batch[0])])

    assert ask(loader, training_step=step).status is Status.INCONCLUSIVE


# --- items ---------------------------------------------------------------------------------------


class IndexForgotten(Rows):
    def __getitem__(self, i: int) -> Any:
        return self.x[0], i % 2


class NothingFollowsTheIndex(Rows):
    def __getitem__(self, i: int) -> Any:
        return self.x[0], 1


class AtRandom(Rows):
    """An epoch is so many items drawn at random, whatever the index."""

    def __getitem__(self, i: int) -> Any:
        k = int(torch.randint(100, ()))
        return self.x[k], k % 2


class OneImage(Dataset[Any]):
    """One example, a hundred times an epoch."""

    def __init__(self) -> None:
        self.coordinates, self.colour = torch.linspace(0, 1, 4), torch.tensor(1)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> Any:
        return self.coordinates, self.colour


def test_the_same_input_for_all_targets_fails() -> None:
    result = ask(DataLoader(IndexForgotten(), 16, shuffle=True))
    assert result.status is Status.FAIL
    assert "same input" in result.message


def test_the_same_item_for_all_indices_fails() -> None:
    data = NothingFollowsTheIndex()
    for loader in (DataLoader(data, 16), DataLoader(Subset(data, range(50)), 16)):
        result = ask(loader)
        assert result.status is Status.FAIL
        assert "are identical" in result.message


def test_items_drawn_at_random_need_no_index() -> None:
    assert ask(DataLoader(AtRandom(), 16)).status is Status.PASS


def test_one_example_may_be_all_there_is() -> None:
    assert ask(DataLoader(OneImage(), 16)).status is Status.WARN


def test_few_different_items_are_no_fault() -> None:
    x = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 1]]).repeat(50, 1)
    assert ask(DataLoader(TensorDataset(x, torch.arange(100) % 2), 16)).status is Status.PASS


def test_inputs_of_which_one_is_constant_are_no_fault() -> None:
    """A grid of coordinates beside the number of the picture."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.net = nn.Embedding(100, 4), nn.Linear(8, 2)

        def forward(self, grid: Tensor, number: Tensor) -> Tensor:
            return self.net(torch.cat([grid, self.code(number)], 1))

    data = TensorDataset(torch.ones(100, 4), torch.arange(100), torch.arange(100) % 2)
    assert ask(DataLoader(data, 16, shuffle=True), Field).status is Status.PASS


class Drawn(Rows):
    """Every input has noise; ``place`` is the stored row that it is added to."""

    def __init__(self, place: Any, stored: bool = True) -> None:
        super().__init__()
        self.place = place
        if not stored:
            self.x = self.x[:, :1]

    def __getitem__(self, i: int) -> Any:
        return self.x[self.place(i)] + torch.randn(4), i % 2


@pytest.mark.parametrize(
    ("data", "fails"),
    [
        (Drawn(lambda i: -1), True),
        (Drawn(lambda i: i), False),
        (Drawn(lambda i: -1, stored=False), False),
    ],
)
def test_one_input_with_other_noise_each_time(data: Drawn, fails: bool) -> None:
    result = ask(DataLoader(data, batch_size=10, shuffle=True))
    assert (result.status is Status.FAIL) is fails, result.message
