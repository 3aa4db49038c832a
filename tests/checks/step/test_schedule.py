"""STEP105: schedules that do not fit the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from author import AuthorLoop, ask, digits, plain, target
from torch import Tensor
from torch.optim import lr_scheduler as schedulers

from nnaudit.checks.step.schedule import Schedule
from nnaudit.report import Curve, Status

LONG = {"train_loader": digits(rows=3200, batch_size=8)}  # 400 batches in an epoch


def every_batch(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = plain(loop, batch)
    for scheduler in loop.schedulers:
        scheduler.step()
    return loss


def schedule(make: Callable[..., Any], body: Any = None, **changes: Any) -> Any:
    return ask(Schedule, target(scheduler=make, **{**LONG, **changes}), body)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedulers.StepLR(o, 10),
        lambda o: schedulers.ExponentialLR(o, 0.95),
        lambda o: schedulers.MultiStepLR(o, [15, 30, 45]),
    ],
)
def test_decay_per_epoch_that_is_stepped_every_batch_fails(make: Callable[..., Any]) -> None:
    result = schedule(make, every_batch)
    assert result.status is Status.FAIL
    assert "stepped every batch" in result.message
    assert isinstance(result.evidence[0], Curve)


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf])
@pytest.mark.parametrize("body", [None, every_batch])
def test_a_rate_that_is_no_rate_fails_at_once(value: float, body: Any) -> None:
    result = schedule(lambda o: schedulers.LambdaLR(o, lambda s: value if s else 1.0), None)
    assert result.status is Status.FAIL
    assert "after its first step" in result.message


def test_a_rate_of_zero_throughout_fails() -> None:
    result = schedule(lambda o: schedulers.LambdaLR(o, lambda s: s // 10**9))
    assert result.status is Status.FAIL
    assert "of 0 in all" in result.message


def test_one_cycle_over_all_batches_that_is_not_stepped_with_them_fails() -> None:
    result = schedule(lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=4000), plain)
    assert result.status is Status.FAIL
    assert "10 epochs" in result.message


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedulers.CosineAnnealingLR(o, T_max=10),
        lambda o: schedulers.CosineAnnealingWarmRestarts(o, 20),
        lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=30),
        lambda o: schedulers.StepLR(o, 100, 0.1),
    ],
)
def test_what_may_be_a_short_run_only_warns(make: Callable[..., Any]) -> None:
    assert schedule(make, every_batch).status is Status.WARN


@pytest.mark.parametrize(("epochs", "status"), [(10, Status.FAIL), (3, Status.WARN)])
def test_a_cosine_over_epochs_that_is_stepped_every_batch_fails(
    monkeypatch: pytest.MonkeyPatch, epochs: int, status: Status
) -> None:
    monkeypatch.setattr(AuthorLoop, "planned_epochs", epochs)
    result = schedule(lambda o: schedulers.CosineAnnealingLR(o, T_max=10), every_batch)
    assert result.status is status


HEALTHY = {
    "cosine over epochs of batches": lambda o: schedulers.CosineAnnealingLR(o, 4000),
    "one cycle": lambda o: schedulers.OneCycleLR(o, 0.1, epochs=5, steps_per_epoch=400),
    "warm-up, then linear": lambda o: schedulers.SequentialLR(
        o,
        [schedulers.LinearLR(o, 0.01, total_iters=40), schedulers.LinearLR(o, 1.0, 0.0, 2000)],
        [40],
    ),
    "inverse square root": lambda o: schedulers.LambdaLR(
        o, lambda s: min((s + 1) / 40, (40 / (s + 1)) ** 0.5)
    ),
    "slow exponential": lambda o: schedulers.ExponentialLR(o, 0.9995),
    "steps of epochs": lambda o: schedulers.StepLR(o, 30 * 400),
    "polynomial over one epoch": lambda o: schedulers.PolynomialLR(o, 400),
    "negative after the end": lambda o: schedulers.LambdaLR(o, lambda s: 1 - s / 800),
}


@pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY)
@pytest.mark.parametrize("body", [None, every_batch], ids=["module", "loop"])
def test_schedules_that_fit_are_not_reported(make: Callable[..., Any], body: Any) -> None:
    assert schedule(make, body).status in (Status.PASS, Status.NOTE)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedulers.StepLR(o, 30),
        lambda o: schedulers.CosineAnnealingLR(o, 10),
        lambda o: schedulers.ExponentialLR(o, 0.95),
    ],
)
@pytest.mark.parametrize("body", [None, plain], ids=["module", "loop"])
def test_schedules_per_epoch_that_are_not_stepped_with_batches_pass(make: Any, body: Any) -> None:
    assert schedule(make, body).status is Status.PASS


def test_a_schedule_that_never_moves_is_a_note() -> None:
    assert schedule(lambda o: schedulers.LambdaLR(o, lambda s: 1.0)).status is Status.NOTE


def test_a_plateau_cannot_be_foreseen_and_no_schedule_is_skipped() -> None:
    assert schedule(schedulers.ReduceLROnPlateau).status is Status.INCONCLUSIVE
    assert ask(Schedule, target()).status is Status.SKIP
