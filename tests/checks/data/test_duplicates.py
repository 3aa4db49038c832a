from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.checks.data.duplicates import Duplicates
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

X = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Anything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.float().flatten(1).mean(1, keepdim=True))


def ask(data: Any, **loading: Any) -> Result:
    loader = DataLoader(data, 32, shuffle=True, **loading)
    target = Target(Anything, loader, loss=F.cross_entropy)
    return run_check(Duplicates, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def test_pictures_with_two_labels_warn() -> None:
    x, y = torch.cat([X, X[:20]]), torch.cat([Y, 1 - Y[:20]])
    result = ask(TensorDataset(x, y))
    assert result.status is Status.WARN
    assert result.message.startswith("40 of 420")


def test_the_same_in_a_dataset_of_ones_own() -> None:
    x, y = torch.cat([X, X[:20]]), torch.cat([Y, 1 - Y[:20]])
    assert ask(list(zip(x, y, strict=True))).status is Status.WARN


def test_a_few_contradictions_are_noted() -> None:
    x, y = torch.cat([X, X[:2]]), torch.cat([Y, 1 - Y[:2]])
    assert ask(TensorDataset(x, y)).status is Status.NOTE


def test_copies_are_noted_where_they_are_many() -> None:
    x, y = torch.cat([X, X[:100]]), torch.cat([Y, Y[:100]])
    assert ask(TensorDataset(x, y)).status is Status.NOTE
    assert ask(TensorDataset(x[:404], y[:404])).status is Status.PASS


def test_outcomes_of_few_cases_vary_by_nature() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.eye(4)[rng.integers(0, 4, 600)], np.eye(3)[rng.integers(0, 3, 600)]], 1)
    data = TensorDataset(torch.tensor(x).float(), torch.tensor(rng.integers(0, 2, 600)))
    assert ask(data).status is Status.NOTE


def test_short_contexts_go_on_in_several_ways() -> None:
    rng = np.random.default_rng(0)
    words = torch.tensor(np.minimum(rng.zipf(1.5, (900, 4)), 40))
    assert ask(TensorDataset(words[:, :3], words[:, 3] % 5)).status is Status.NOTE


def test_distinct_rows_pass() -> None:
    result = ask(TensorDataset(X, Y))
    assert result.status is Status.PASS
    assert "None of 400" in result.message


def test_repeated_quantities_are_no_contradiction() -> None:
    x, y = torch.cat([X, X[:50]]), torch.randn(450).abs()
    loader = DataLoader(TensorDataset(x, y), 32)
    target = Target(Anything, loader, loss=lambda o, t: F.mse_loss(o[:, 0], t))
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    assert run_check(Duplicates, Audit(loop)).status is Status.NOTE


def test_rows_drawn_anew_are_not_compared() -> None:
    class Drawn(Dataset):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return torch.randn(12), i % 5

    assert ask(Drawn()).status is Status.INCONCLUSIVE


def test_all_rows_alike_is_for_another_check() -> None:
    assert ask(TensorDataset(torch.ones(64, 12), Y[:64])).status is Status.SKIP


def test_identifiers_beside_the_input_do_not_hide_a_repetition() -> None:
    rows = [{"x": X[i % 380], "labels": int(Y[i]), "number": i} for i in range(400)]
    assert ask(rows).status in (Status.WARN, Status.NOTE)


def test_ids_that_one_batch_does_not_repeat_are_inputs_all_the_same() -> None:
    users, items = torch.arange(640) % 40, torch.arange(640) % 9
    data = TensorDataset(users[:, None] * 9 + items[:, None], Y[torch.arange(640) % 400])
    assert ask(data).status is Status.NOTE


def test_a_rounded_quantity_repeats_by_nature() -> None:
    ages = torch.randint(18, 80, (400, 1), generator=torch.Generator().manual_seed(1)).float()
    assert ask(TensorDataset(ages, Y)).status is Status.NOTE


class Stacked(Anything):
    """Is given its rows in a list, as detectors are."""

    def forward(self, x: list[Tensor]) -> Tensor:
        return super().forward(torch.stack(x))


def listed(items: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    return [x for x, _ in items], torch.stack([y for _, y in items])


def test_rows_in_lists_are_compared_too() -> None:
    for extra, status in ((0, Status.PASS), (100, Status.NOTE)):
        x, y = torch.cat([X, X[:extra]]), torch.cat([Y, Y[:extra]])
        loader = DataLoader(TensorDataset(x, y), 32, shuffle=True, collate_fn=listed)
        target = Target(Stacked, loader, training_step=lambda m, b: F.cross_entropy(m(b[0]), b[1]))
        loop = DirectLoop(target, torch.device("cpu"), seed=0)
        result = run_check(Duplicates, Audit(loop))
        assert result.status is status, result.message


class Stream:
    """Draws from the rows for as long as it is asked."""

    endless = True

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(40):
            rows = torch.randint(len(X), (32,))
            yield X[rows], Y[rows]


def test_rows_that_a_stream_yields_again_are_no_copies() -> None:
    target = Target(Anything, Stream(), loss=F.cross_entropy)
    result = run_check(Duplicates, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))
    assert result.status is Status.INCONCLUSIVE
