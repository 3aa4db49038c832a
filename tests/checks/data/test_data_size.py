from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nnaudit.checks.data.data_size import DataSize
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def ask(data: Any, hidden: int = 8, loss: Any = F.cross_entropy) -> Result:
    net = lambda: nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))  # noqa: E731
    loop = DirectLoop(Target(net, DataLoader(data, 32), loss=loss), torch.device("cpu"), seed=0)
    return run_check(DataSize, Audit(loop))


def rows(n: int, classes: int = 3) -> TensorDataset:
    return TensorDataset(torch.randn(n, 4), torch.arange(n) % classes)


def test_enough_rows_pass() -> None:
    result = ask(rows(600))
    assert result.status is Status.PASS
    assert "600 training rows for 67 trainable parameters, 200 rows" in result.message


def test_few_rows_of_a_class_are_noted() -> None:
    assert ask(rows(120)).status is Status.NOTE


def test_many_parameters_per_row_are_noted() -> None:
    assert ask(rows(600), hidden=10_000).status is Status.NOTE


def test_without_classes_only_the_parameters_count() -> None:
    data = TensorDataset(torch.randn(60, 4), torch.randn(60, 3))
    assert ask(data, loss=F.mse_loss).status is Status.PASS


def test_a_stream_has_no_size() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            while True:
                yield torch.randn(4), 0

    assert ask(Stream()).status is Status.SKIP
