"""STEP105: schedules that do not fit the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from author import AuthorLoop, ask, digits, plain, target
from torch import Tensor
from torch.optim import lr_scheduler as schedulers

from nnaudit.checks.step.schedule import Schedule, decay_by_hand
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.base import Step
from nnaudit.probes import lr_plan
from nnaudit.probes.lr_plan import LearningRatePlan, Plan, is_unused, never_read
from nnaudit.probes.second_epoch import Second, SecondEpoch
from nnaudit.probes.step_trace import StepTrace, Trace
from nnaudit.report import Curve, Location, Status
from support import programs
from support.verdicts import verdict

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


@pytest.mark.parametrize(
    ("factor", "body", "status"),
    [
        (lambda s: min(1.0, s // 20), every_batch, Status.FAIL),
        (lambda s: min(1.0, s / 5), plain, Status.FAIL),  # stepped per epoch: one epoch at 0
        (lambda s: min(1.0, s / 20) * 0.99**s, every_batch, Status.PASS),
        (lambda s: 1.0 if s < 3 else 0.1, plain, Status.PASS),
    ],
)
def test_a_rate_of_zero_for_many_steps_fails(factor: Any, body: Any, status: Status) -> None:
    result = schedule(lambda o: schedulers.LambdaLR(o, factor), body)
    assert result.status is status
    assert ("nothing is learnt" in result.message) is (status is Status.FAIL)


@pytest.mark.parametrize(("peak", "status"), [(0.05, Status.FAIL), (1.0, Status.PASS)])
def test_a_function_that_returns_the_rate_itself_fails(peak: float, status: Status) -> None:
    def make(o: Any) -> Any:
        for group in o.param_groups:
            group["lr"] = 0.05
        return schedulers.LambdaLR(o, lambda s: peak * min(1.0, (s + 1) / 10, 1.001 - s / 1e4))

    result = schedule(make, every_batch)
    assert result.status is status


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


@pytest.mark.parametrize(
    ("seeks", "metric", "status"),
    [
        ("min", "val_acc", Status.FAIL),
        ("min", "accuracy", Status.FAIL),
        ("max", "val_loss", Status.FAIL),
        ("min", "mean_f1", Status.FAIL),
        ("max", "val_acc", Status.INCONCLUSIVE),
        ("min", "val_loss", Status.INCONCLUSIVE),
        ("min", "accuracy_loss", Status.INCONCLUSIVE),
        ("min", "accuracy_gap", Status.INCONCLUSIVE),
        ("min", "score", Status.INCONCLUSIVE),
        ("min", "", Status.INCONCLUSIVE),
    ],
)
def test_a_plateau_of_a_metric_that_is_to_rise(seeks: str, metric: str, status: Status) -> None:
    unknown = "it follows a metric"
    plan = Plan(0, "ReduceLROnPlateau", {}, (), unknown=unknown, metric=metric, seeks=seeks)
    measured = {LearningRatePlan: (plan,), StepTrace: Trace((), ()), SecondEpoch: Second()}
    usual = programs.target(scheduler=schedulers.ReduceLROnPlateau)
    result = verdict(Schedule, measured, target=usual)
    assert result.status is status, result.message


@pytest.mark.parametrize(
    ("line", "metric"),
    [
        ("s.step(accuracy)", "accuracy"),
        ("s.step(metrics=val.acc)", "acc"),
        ("s.step(1 - accuracy)", ""),
        ("s.step(accuracy); s.step(loss)", ""),
        ("how = {'monitor': 'val_acc', 'lr_scheduler': s}", "val_acc"),
    ],
)
def test_what_a_plateau_is_stepped_with(tmp_path: Path, line: str, metric: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"s = ReduceLROnPlateau(o)\n{line}\n")
    assert lr_plan.followed_metric(Location(file=str(script), line=1)) == metric


class PlannedLoop(AuthorLoop):
    """A loop that counts its epochs, and takes ``handed`` batches for a step."""

    counted_epochs = 2
    runs_whole = True
    handed = 1

    def step(self, batch: Any, *, observe: bool = False, losses: bool = False) -> Step:
        taken = super().step(batch, observe=observe, losses=losses)
        return replace(taken, handed=self.handed)


def planned(make: Callable[..., Any], body: Any, handed: int = 1, **flags: Any) -> Any:
    torch.manual_seed(0)
    loop = PlannedLoop(target(scheduler=make, **LONG), body)
    loop.handed = handed
    for name, value in flags.items():
        setattr(loop, name, value)
    return run_check(Schedule, Audit(loop))


def linear(total: int, warmup: int = 1) -> Callable[..., Any]:
    """Up from zero in ``warmup`` steps, down to zero at ``total``, as fine-tuning has it."""
    return lambda o: schedulers.LambdaLR(
        o, lambda s: min((s + 1) / warmup, max(0.0, (total - s) / total))
    )


def test_a_warm_up_longer_than_the_run_fails() -> None:
    result = planned(linear(100_000, warmup=1900), every_batch)
    assert result.status is Status.FAIL
    assert "the run has only 800" in result.message


def test_a_warm_up_longer_than_a_single_epoch_warns() -> None:
    result = planned(linear(100_000, warmup=1900), every_batch, counted_epochs=1)
    assert result.status is Status.WARN


def test_a_warm_up_of_batches_that_is_stepped_once_per_epoch_fails() -> None:
    result = planned(linear(4000, warmup=1200), plain)
    assert result.status is Status.FAIL
    assert "once in each of 2 epochs" in result.message


@pytest.mark.parametrize(("total", "status"), [(300, Status.FAIL), (500, Status.WARN)])
def test_a_rate_that_is_zero_before_the_run_is_over(total: int, status: Status) -> None:
    result = planned(linear(total), every_batch)
    assert result.status is status
    assert f"after {total} of the 800 times" in result.message


def test_a_one_cycle_that_raises_before_the_run_is_over_fails() -> None:
    result = planned(lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=390), every_batch)
    assert result.status is Status.FAIL
    assert "raises an error" in result.message


@pytest.mark.parametrize(
    "make",
    [
        linear(800, warmup=40),
        lambda o: schedulers.CosineAnnealingLR(o, 800),
        lambda o: schedulers.LambdaLR(o, lambda s: 0.5 + 0.5 * math.cos(math.pi * s / 800)),
    ],
)
def test_a_plan_in_batches_that_is_stepped_once_in_two_fails(make: Callable[..., Any]) -> None:
    result = planned(make, every_batch, handed=2)
    assert result.status is Status.FAIL
    assert "stepped once in 2 batches: 400 times" in result.message
    assert planned(make, every_batch).status is Status.PASS


def test_a_cosine_over_batches_that_is_stepped_once_per_epoch_fails() -> None:
    result = planned(lambda o: schedulers.CosineAnnealingLR(o, 800), plain)
    assert result.status is Status.FAIL
    assert "once per epoch: 2 times" in result.message


def test_a_warm_up_beyond_what_is_followed_fails() -> None:
    make = lambda o: schedulers.LambdaLR(o, lambda s: min(1.0, s / 10_000))  # noqa: E731
    result = planned(make, every_batch)
    assert result.status is Status.FAIL
    assert "more than 2,000 steps" in result.message


def test_a_cosine_over_the_epochs_that_the_loop_counts_fails() -> None:
    make = lambda o: schedulers.CosineAnnealingLR(o, 12)  # noqa: E731
    result = planned(make, every_batch, counted_epochs=12, runs_whole=False)
    assert result.status is Status.FAIL
    assert "T_max is the number of epochs" in result.message


@pytest.mark.parametrize(
    ("period", "body", "epochs", "status"),
    [
        (2, plain, 30, Status.WARN),
        (15, plain, 30, Status.FAIL),  # and ends where it began
        (3000, every_batch, 20, Status.WARN),
    ],
)
def test_a_cosine_that_ends_early_and_rises_again(
    period: int, body: Any, epochs: int, status: Status
) -> None:
    make = lambda o: schedulers.CosineAnnealingLR(o, period)  # noqa: E731
    result = planned(make, body, counted_epochs=epochs)
    assert result.status is status
    assert "rises again" in result.message
    assert "rises again" not in planned(make, body, counted_epochs=epochs, runs_whole=False).message


@pytest.mark.parametrize(
    ("make", "body", "flags"),
    [
        (lambda o: schedulers.CosineAnnealingLR(o, 20), plain, {"counted_epochs": 30}),
        (lambda o: schedulers.CosineAnnealingWarmRestarts(o, 5), plain, {"counted_epochs": 30}),
        (linear(800, warmup=300), every_batch, {}),
        (linear(760, warmup=40), every_batch, {}),
        (linear(1200, warmup=40), every_batch, {}),
        (lambda o: schedulers.CosineAnnealingLR(o, 2), plain, {}),
        (lambda o: schedulers.LinearLR(o, 0.01, total_iters=150), plain, {}),
        (lambda o: schedulers.ExponentialLR(o, 1.005), every_batch, {}),
        (linear(100_000, warmup=1900), every_batch, {"rates_rise": True}),
        (linear(100_000, warmup=1900), every_batch, {"counted_epochs": 0}),
        (linear(300), every_batch, {"counted_epochs": 0}),
        (linear(300), every_batch, {"runs_whole": False}),
        (lambda o: schedulers.StepLR(o, 400, 0.01), every_batch, {}),
    ],
    ids=[
        "a cosine that ends a little early",
        "a cosine with restarts",
        "a long warm-up",
        "over a little early",
        "cut short",
        "a cosine over epochs",
        "a warm-up that may be stepped every fifth batch",
        "a rate that goes on rising",
        "a range test",
        "warm-up in a run of unknown length",
        "zero in a run of unknown length",
        "zero in a run that leaves off early",
        "steps that are not the end",
    ],
)
def test_plans_that_fit_the_run_pass(make: Any, body: Any, flags: dict[str, Any]) -> None:
    assert planned(make, body, **flags).status is Status.PASS


SCRIPT = """
optimizer = SGD(model.parameters(), lr=0.1)
scheduler = StepLR(
    optimizer, 10
)
for batch in loader:
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", True),
        ("print(scheduler.get_last_lr())\nsave(scheduler.state_dict())\n", True),
        ("scheduler.step\n", True),
        ("scheduler.step()\n", False),
        ("fit(model, scheduler)\n", False),
        ("getattr(trainer, 'scheduler').step()\n", False),
        ("self.scheduler.step()\n", False),
    ],
)
def test_a_variable_that_is_never_read(tmp_path: Path, more: str, expected: bool) -> None:
    file = tmp_path / "train.py"
    file.write_text(SCRIPT + more)
    assert never_read(file, 4) is expected
    assert not never_read(file, 6)


@pytest.mark.parametrize(("bases", "expected"), [("", True), ("(Base)", False)])
def test_an_attribute_may_be_read_by_a_base_class(
    tmp_path: Path, bases: str, expected: bool
) -> None:
    file = tmp_path / "train.py"
    file.write_text(
        f"class Trainer{bases}:\n    def fit(self):\n        self.scheduler = StepLR(o, 10)\n"
    )
    assert never_read(file, 3) is expected


def test_a_variable_may_be_read_by_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "train.py", ModuleType("helper")
    file.write_text(SCRIPT)
    monkeypatch.setattr(lr_plan, "is_user", lambda name: name.startswith(str(tmp_path)))
    assert is_unused(Location(file=str(file), line=4))
    other.__file__ = str(tmp_path / "helper.py")
    monkeypatch.setitem(sys.modules, "helper", other)
    assert is_unused(Location(file=str(file), line=4))  # a name that torch made up
    (tmp_path / "helper.py").touch()
    assert not is_unused(Location(file=str(file), line=4))


def test_a_scheduler_that_nothing_steps_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lr_plan, "is_unused", lambda place: True)
    monkeypatch.setattr(AuthorLoop, "locate", lambda loop, thing: Location(file="t.py", line=3))
    make = schedulers.StepLR
    result = schedule(lambda o: make(o, 10), plain)
    assert result.status is Status.FAIL
    assert "never stepped" in result.message
    assert "never stepped" not in schedule(lambda o: make(o, 10), every_batch).message
    assert schedule(lambda o: make(o, 10)).status is Status.PASS


def of_another(loop: AuthorLoop, batch: Any) -> Tensor:
    """Steps an optimizer made beside the scheduler's, and the scheduler."""
    x, y = batch
    loop.optimizers[-1].zero_grad()
    loss = torch.nn.functional.cross_entropy(loop.model(x), y)
    loss.backward()
    loop.optimizers[-1].step()
    for scheduler in loop.schedulers:
        scheduler.step()
    return loss


class Keeping(torch.optim.SGD):
    """Keeps another optimizer, as SAM does."""

    base: Any = None


def beside(make: Callable[..., Any], body: Any, *, keeps: bool = False) -> Any:
    """Ask about two optimizers over the same parameters; the scheduler is the first's."""
    loop = AuthorLoop(target(scheduler=lambda o: schedulers.StepLR(o, 1000), **LONG), body)
    first = loop.optimizers[0]
    other = make(loop.model.parameters(), lr=0.1)
    if keeps:
        other.base = first
    loop.optimizers = (*loop.optimizers, other)
    return run_check(Schedule, Audit(loop))


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_a_scheduler_of_an_optimizer_that_another_replaces_warns() -> None:
    result = beside(torch.optim.SGD, of_another)
    assert result.status is Status.WARN
    assert "has no effect" in result.message


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_a_scheduler_of_an_optimizer_that_steps_or_is_wrapped_passes() -> None:
    assert "no effect" not in beside(torch.optim.SGD, every_batch).message
    assert "no effect" not in beside(Keeping, of_another, keeps=True).message


def multiplied(factor: float) -> Callable[..., Tensor]:
    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loss = plain(loop, batch)
        for group in loop.optimizers[0].param_groups:
            group["lr"] *= factor
        return loss

    return body


@pytest.mark.parametrize(
    ("factor", "status"),
    [(0.9, Status.FAIL), (0.98, Status.WARN), (0.999, Status.PASS), (1.0, Status.SKIP)],
)
def test_a_rate_that_the_script_lowers_with_every_batch(factor: float, status: Status) -> None:
    assert ask(Schedule, target(**LONG), multiplied(factor)).status is status


@pytest.mark.parametrize(("factor", "said"), [(1.0, "No scheduler"), (1.05, "plan is unknown")])
def test_a_rate_that_no_scheduler_sets_is_told_from_one_that_stays(
    factor: float, said: str
) -> None:
    assert said in ask(Schedule, target(**LONG), multiplied(factor)).message


def test_a_rate_by_hand_that_is_no_decay() -> None:
    assert decay_by_hand([0.1, 0.09, 0.081, 0.0729]) == pytest.approx(0.9)
    assert decay_by_hand([0.1, 0.09, 0.08, 0.07]) is None
    assert decay_by_hand([0.1, 0.11, 0.121]) is None
    assert decay_by_hand([0.1, 0.09]) is None
    assert decay_by_hand([0.0, 0.0, 0.0]) is None
