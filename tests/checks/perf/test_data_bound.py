"""PERF101: a data set that takes its time, and ones that do not matter."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnaudit.checks.perf import data_bound
from nnaudit.checks.perf.data_bound import DataBound
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.data_wait import DataWait, Waiting
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target
from support.verdicts import verdict


class Slow(Dataset[Any]):
    """Rows that take a while to come."""

    def __init__(self, rows: int, seconds: float) -> None:
        self.x, self.seconds = torch.randn(rows, 8), seconds

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        time.sleep(self.seconds)
        return self.x[i], int(self.x[i, :3].argmax())


def ask(dataset: Dataset[Any], **loading: Any) -> Result:
    """Ask about a perceptron on ``dataset``."""
    target = Target(
        model=lambda: nn.Linear(8, 3),
        train_loader=lambda: DataLoader(dataset, batch_size=8, shuffle=True, **loading),
    )
    return run_check(DataBound, Audit(DirectLoop(target, torch.device("cpu"), 0)))


def test_rows_that_take_their_time_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_bound.os, "cpu_count", lambda: 8)
    result = ask(Slow(8 * 400, 0.005))
    assert result.status is Status.WARN, result.message
    assert "num_workers=8" in result.fix


def test_a_short_epoch_passes_however_slow_its_rows() -> None:
    assert ask(Slow(8 * 20, 0.005)).status is Status.PASS


@pytest.mark.parametrize(("wait", "status"), [(0.04, Status.WARN), (0.004, Status.PASS)])
def test_slow_rows_warn_sooner_than_rows_in_memory(wait: float, status: Status) -> None:
    """Of 8 rows a batch, 5 ms and 0.5 ms each."""
    data = Slow(8 * 8, 0.0)
    target = Target(lambda: nn.Linear(8, 3), lambda: DataLoader(data, batch_size=8))
    seen = Waiting(wait=wait, step=wait / 20, batches=8, length=round(3 / wait))
    result = verdict(DataBound, {DataWait: seen}, target=target)
    assert result.status is status


def test_rows_in_memory_pass() -> None:
    x = torch.randn(512, 8)
    assert ask(TensorDataset(x, x[:, :3].argmax(1))).status is Status.PASS


def test_two_batches_are_too_few_to_say() -> None:
    assert ask(Slow(16, 0.001)).status is Status.INCONCLUSIVE


@pytest.mark.parametrize(
    ("wait", "step", "share"), [(0.0, 0.0, 0.0), (1.0, 1.0, 0.5), (3.0, 1.0, 0.75)]
)
def test_the_share_of_waiting(wait: float, step: float, share: float) -> None:
    assert Waiting(wait, step, 8, None).share == share
