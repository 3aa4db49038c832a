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
