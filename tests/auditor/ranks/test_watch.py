"""What is written down of a script that goes its own way; one process shows it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from nnaudit.engine import rank as process
from nnaudit.engine.job import Job
from nnaudit.loop.script.patches import Patches
from nnaudit.ranks.journal import Journal
from nnaudit.ranks.record import Rank, read
from nnaudit.ranks.watch import ASIDE, EPOCHS, STEPS, Watch
from nnaudit.settings import Settings

HEAD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.randn(160, 4), torch.arange(160) % 2)
held = TensorDataset(torch.randn(80, 4), torch.arange(80) % 2)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), 0.1)


def step(x, y):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""


def watched(folder: Path, source: str, *, shortens: bool = True) -> Rank:
    path = folder / "train.py"
    path.write_text(HEAD + source)
    watch = Watch(Journal(folder, 0), shortens=shortens)
    with Patches() as taps:
        error = process._run(Job(path=str(path), settings=Settings()), taps, watch, 0)
    assert error is None
    watch.finish()
    return read(folder, 0)


def kinds(rank: Rank) -> Counter[str]:
    return Counter(entry.kind for entry in rank.entries)


def test_two_epochs_are_cut_short_and_followed_to_their_end(tmp_path: Path) -> None:
    source = """
loader, val = DataLoader(data, 4, shuffle=True), DataLoader(held, 8)
for epoch in range(9):
    for x, y in loader:
        step(x, y)
    with torch.no_grad():
        for x, y in val:
            model(x)
"""
    rank = watched(tmp_path, source)
    assert kinds(rank)["batch"] == kinds(rank)["stepped"] == EPOCHS * STEPS
    assert kinds(rank)["validation"] == EPOCHS * ASIDE
    assert kinds(rank)["resumed"] == EPOCHS
    first, second = rank.orders
    assert first.complete and first.batches == 40
    assert sorted(first.indices) == sorted(second.indices) == list(range(160))
    assert first.indices != second.indices
    assert [w.when for w in rank.weights] == [
        "the first step", "step 1", "step 8", "the start of epoch 1", "the end",
    ]  # fmt: skip
    assert "torch" in rank.steps[3].drew  # dropout
    assert rank.summary.augments is False


def test_a_loader_made_anew_for_every_epoch_is_one(tmp_path: Path) -> None:
    source = """
for epoch in range(9):
    loader = DataLoader(data, 4, shuffle=True)
    for x, y in loader:
        step(x, y)
"""
    rank = watched(tmp_path, source)
    assert [(order.loader, order.epoch) for order in rank.orders] == [(0, 0), (0, 1)]


def test_what_is_read_with_gradients_and_not_trained_on_is_validation(tmp_path: Path) -> None:
    source = """
loader, val = DataLoader(data, 4, shuffle=True), DataLoader(held, 8)
for epoch in range(9):
    for x, y in loader:
        step(x, y)
    for x, y in val:
        with torch.no_grad():
            model(x)
"""
    rank = watched(tmp_path, source)
    assert {batch.loader for batch in rank.batches} == {0}
    assert kinds(rank)["validation"] == ASIDE


def test_a_script_without_a_loader_is_watched_for_as_many_steps(tmp_path: Path) -> None:
    source = """
while True:
    rows = torch.randint(160, (8,))
    step(*data[rows])
"""
    rank = watched(tmp_path, source)
    assert len(rank.steps) == EPOCHS * STEPS
    assert len({each.inputs for each in rank.steps}) == EPOCHS * STEPS


def test_epochs_are_whole_where_a_script_minds(tmp_path: Path) -> None:
    source = """
loader = DataLoader(data, 16)
for epoch in range(9):
    for x, y in loader:
        step(x, y)
"""
    rank = watched(tmp_path, source, shortens=False)
    assert len(rank.steps) == EPOCHS * 10
    assert rank.orders[0].indices == tuple(range(160))


def test_a_stream_is_read_on_to_see_where_it_ends(tmp_path: Path) -> None:
    source = """
from torch.utils.data import IterableDataset


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data)


for epoch in range(9):
    for x, y in DataLoader(Stream(), 4):
        step(x, y)
"""
    rank = watched(tmp_path, source)
    (order,) = rank.orders
    assert (order.indices, order.batches, order.complete) == ((), 40, True)
    assert len(rank.steps) == EPOCHS * STEPS


def test_a_look_at_one_batch_is_no_epoch(tmp_path: Path) -> None:
    source = """
loader = DataLoader(data, 4, shuffle=True)
for epoch in range(9):
    size = len(next(iter(loader))[0])
    for x, y in loader:
        step(x, y)
"""
    rank = watched(tmp_path, source)
    assert [order.epoch for order in rank.orders] == [0, 1]
    assert len(rank.steps) == EPOCHS * STEPS


def test_a_loop_that_leaves_off_with_the_last_batch_has_an_order(tmp_path: Path) -> None:
    source = """
loader = DataLoader(data, 40, shuffle=True)
for epoch in range(9):
    batches = iter(loader)
    for _ in range(len(loader)):
        step(*next(batches))
"""
    rank = watched(tmp_path, source)
    assert [(order.epoch, order.batches) for order in rank.orders] == [(0, 4), (1, 4)]


def test_what_a_closure_computes_belongs_to_the_first_step(tmp_path: Path) -> None:
    source = """
def closure(x, y):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


for x, y in DataLoader(data, 4):
    optimizer.step(lambda: closure(x, y))
"""
    path = tmp_path / "train.py"
    path.write_text(HEAD + source)
    watch = Watch(Journal(tmp_path, 0), shortens=True)
    with Patches() as taps:
        assert process._run(Job(path=str(path), settings=Settings()), taps, watch, 0) is None
    watch.finish()
    assert len(read(tmp_path, 0).weights[0].parameters) == 4
    assert watch.first_step is not None
    assert watch.first_step.gradients.keys() == watch.first_step.weights.keys()


def test_an_order_that_is_followed_is_not_used_up(tmp_path: Path) -> None:
    source = """
loader = DataLoader(data, 4, num_workers=1, persistent_workers=True, shuffle=True)
for epoch in range(9):
    for i, (x, y) in enumerate(loader):
        step(x, y)
        if i == 3:
            break
"""
    rank = watched(tmp_path, source)
    first, second = rank.orders
    assert [(o.epoch, o.batches) for o in rank.orders] == [(0, 40), (1, 40)]
    assert sorted(first.indices) == sorted(second.indices) == list(range(160))
    assert [batch.index for batch in rank.batches] == [0, 1, 2, 3, 0, 1, 2, 3]
