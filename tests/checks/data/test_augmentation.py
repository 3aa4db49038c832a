from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, random_split

from nnaudit.checks.data.augmentation import Augmentation
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target
from support.verdicts import ask_script


class RandomShift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(())


class RandomSign:
    """No module: whether it is called cannot be seen."""

    def __call__(self, x: Tensor) -> Tensor:
        return x * (1 if torch.rand(()) < 0.5 else -1)


class Images(Dataset[Any]):
    def __init__(self, transform: Any = None, n: int = 100) -> None:
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return (self.x[i] if self.transform is None else self.transform(self.x[i])), i % 2


class SeededByIndex(Images):
    def __getitem__(self, i: int) -> Any:
        torch.manual_seed(i)
        return super().__getitem__(i)


class Cached(Images):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cache: dict[int, Any] = {}

    def __getitem__(self, i: int) -> Any:
        if i not in self.cache:
            self.cache[i] = super().__getitem__(i)
        return self.cache[i]


class Precomputed(Images):
    """Features were computed once; the images' transform is still there."""

    def __getitem__(self, i: int) -> Any:
        return self.x[i], i % 2


class Denoising(Images):
    def __getitem__(self, i: int) -> Any:
        return self.x[i] + torch.randn(4), self.x[i]


class Masked(Images):
    def __getitem__(self, i: int) -> Any:
        hidden = torch.rand(4) < 0.5
        return self.x[i].masked_fill(hidden, 0.0), int(hidden.sum()) % 2


def ask(train: Any, val: Any = None, outputs: int = 2, **settings: Any) -> Result:
    loader = DataLoader(train, 16, shuffle=True, **settings)
    other = val if val is None or isinstance(val, list) else DataLoader(val, 16)
    target = Target(lambda: nn.Linear(4, outputs), lambda: loader, val_loader=other)
    return run_check(Augmentation, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def test_augmented_training_and_plain_validation_pass() -> None:
    result = ask(Images(RandomShift()), Images())
    assert result.status is Status.PASS
    assert "32 of 32 training items" in result.message


def test_a_split_that_shares_the_transform_is_warned_of() -> None:
    train, val = random_split(Images(RandomShift()), [80, 20])
    result = ask(train, val)
    assert result.status is Status.WARN
    assert "20 of 20 validation items" in result.message
    assert "RandomShift" in result.message


def test_subsets_with_transforms_of_their_own_pass() -> None:
    train = Subset(Images(RandomShift()), range(80))
    assert ask(train, Subset(Images(), range(80, 100))).status is Status.PASS


def test_validation_without_an_index_is_read_twice() -> None:
    class Noisy(list[Any]):
        def __iter__(self) -> Any:
            return ((x + torch.randn(4), y) for x, y in super().__iter__())

    fixed = [(torch.randn(16, 4), torch.arange(16) % 2) for _ in range(3)]
    assert ask(Images(RandomShift()), Noisy(fixed)).status is Status.WARN
    assert ask(Images(RandomShift()), fixed).status is Status.PASS


@pytest.mark.parametrize(("data", "outputs"), [(Denoising(), 4), (Masked(), 2)])
def test_a_task_made_up_on_the_spot_is_noted(data: Any, outputs: int) -> None:
    assert ask(data, data, outputs).status is Status.NOTE


@pytest.mark.parametrize("kind", [SeededByIndex, Cached])
def test_random_transforms_that_repeat_are_warned_of(kind: Any) -> None:
    result = ask(kind(RandomShift()))
    assert result.status is Status.WARN
    assert "RandomShift is declared" in result.message


def test_transforms_that_are_not_called_are_noted() -> None:
    assert ask(Precomputed(RandomShift())).status is Status.NOTE


def test_a_flip_of_half_the_items_is_seen() -> None:
    assert ask(Images(RandomSign()), Images()).status is Status.PASS


def test_without_any_chance_there_is_nothing_to_ask() -> None:
    assert ask(Images(), Images()).status is Status.SKIP


def test_mixing_in_the_collate_function_is_augmentation() -> None:
    def mixed_up(items: list[Any]) -> Any:
        x = torch.stack([x for x, _ in items])
        order = torch.randperm(len(x))
        return x.lerp(x[order], float(torch.rand(()))), torch.tensor([y for _, y in items])

    assert ask(Images(), Images(), collate_fn=mixed_up).status is Status.PASS


def test_a_stream_is_inconclusive() -> None:
    batches = [(torch.randn(16, 4), torch.arange(16) % 2)] * 4
    target = Target(lambda: nn.Linear(4, 2), lambda: batches)
    audit = Audit(DirectLoop(target, torch.device("cpu"), seed=0))
    assert run_check(Augmentation, audit).status is Status.INCONCLUSIVE


MIXED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x, y = torch.randn(96, 4), torch.arange(96) % 3
train = DataLoader(TensorDataset(x[:64], y[:64]), batch_size=16, shuffle=True)
val_loader = DataLoader(TensorDataset(x[64:], y[64:]), batch_size=16)
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(9):
    for a, b in train:
        share, order = torch.rand(()), torch.randperm(len(a))
        out = model(share * a + (1 - share) * a[order])
        loss = nn.functional.cross_entropy(out, b) * share
        loss = loss + nn.functional.cross_entropy(out, b[order]) * (1 - share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_what_the_script_does_to_a_batch_is_no_change_of_the_items(tmp_path: Path) -> None:
    result = ask_script(Augmentation, tmp_path / "train.py", MIXED)
    assert result.status is Status.SKIP, result.message
