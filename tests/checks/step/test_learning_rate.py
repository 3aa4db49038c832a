"""STEP109: learning rates that are far off."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from author import ask, digits, target
from torch import nn
from torch.optim import lr_scheduler as schedulers

from nnaudit.checks.step.learning_rate import LearningRate
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.measure.eval_result import EvalResult
from nnaudit.probes.training_run import EvalPoint, Training, TrainingRun
from nnaudit.report import Curve, Result, Status


def sgd(lr: float, momentum: float = 0.9) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda m: torch.optim.SGD(m.parameters(), lr, momentum)


def adam(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda m: torch.optim.AdamW(m.parameters(), lr)


def deep() -> nn.Module:
    layers = [layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), *layers, nn.Linear(32, 5))


@pytest.mark.parametrize("optimizer", [sgd(10.0), sgd(100.0), adam(3.0), adam(30.0)])
def test_a_rate_that_diverges_warns(optimizer: Any) -> None:
    result = ask(LearningRate, target(model=deep, optimizer=optimizer))
    assert result.status is Status.WARN
    assert "diverges" in result.message
    assert isinstance(result.evidence[0], Curve)


@pytest.mark.parametrize("optimizer", [sgd(1e-5), sgd(1e-7), adam(1e-6), adam(1e-5)])
def test_a_rate_far_below_the_useful_one_warns_and_suggests_another(optimizer: Any) -> None:
    result = ask(LearningRate, target(model=deep, optimizer=optimizer))
    assert result.status is Status.WARN
    assert "below the useful" in result.message
    assert result.fix.startswith("lr=")


@pytest.mark.parametrize(
    "optimizer",
    [sgd(0.01), sgd(0.03), sgd(0.1), adam(3e-4), adam(1e-3), adam(3e-3), adam(1e-2)],
)
def test_rates_within_a_factor_of_ten_or_so_pass(optimizer: Any) -> None:
    assert ask(LearningRate, target(model=deep, optimizer=optimizer)).status is Status.PASS


def test_a_planned_warm_up_is_not_held_against_its_peak() -> None:
    warm = target(
        model=deep,
        optimizer=sgd(10.0),
        scheduler=lambda o: schedulers.LambdaLR(o, lambda s: min(1.0, (s + 1) / 1000)),
    )
    assert ask(LearningRate, warm).status is Status.PASS


def test_labels_without_signal_decide_nothing() -> None:
    def noise() -> Any:
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(640, 12, generator=g), torch.randint(0, 5, (640,), generator=g)
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True
        )

    result = ask(LearningRate, target(train_loader=noise, optimizer=adam(1e-3)))
    assert result.status in (Status.PASS, Status.INCONCLUSIVE)


def test_a_tiny_data_set_passes() -> None:
    tiny = target(train_loader=digits(rows=24, batch_size=8), optimizer=adam(1e-3))
    assert ask(LearningRate, tiny).status is Status.PASS


def test_optimizers_with_a_pace_of_their_own_are_skipped() -> None:
    lbfgs = target(optimizer=lambda m: torch.optim.LBFGS(m.parameters()))
    assert ask(LearningRate, lbfgs).status is Status.SKIP


def slowly(seconds: float, losses: list[float], **changes: Any) -> Training:
    """A run of the author's program of which every step took so long."""
    parts: dict[str, Any] = {
        "losses": tuple(losses),
        "rates": (0.1,) * len(losses),
        "epoch_starts": (0,),
        "rows": (32,) * len(losses),
        "calls": {},
        "constant": math.nan,
        "fixed": (),
        "val": (),
        "val_whole": False,
        "moments": (EvalPoint(0, EvalResult((losses[0],)), EvalResult()),),
        "cut": True,
        "seconds": seconds * len(losses),
    }
    return Training(**{**parts, **changes})


def ask_slow(
    training: Training, optimizer: Any, monkeypatch: pytest.MonkeyPatch, *broken: str
) -> Result:
    monkeypatch.setattr(TrainingRun, "measure", lambda self, audit: training)
    loop = DirectLoop(target(model=deep, optimizer=optimizer), torch.device("cpu"), 0)
    audit = Audit(loop)
    audit.broken.update(broken)
    return run_check(LearningRate, audit)


FALLING = [2.0 * 0.99**i for i in range(120)]


def test_a_slow_program_that_learns_is_believed_without_a_ramp(monkeypatch: Any) -> None:
    result = ask_slow(slowly(0.06, FALLING), sgd(0.1), monkeypatch)
    assert result.status is Status.PASS
    assert "lies where the loss falls" in result.message
    assert result.steps == 0


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] * 120,
        [2.0, 40.0, 60.0] + [30.0 * 0.9**i + 1.9 for i in range(117)],
        [x - 1.9 for x in FALLING],
    ],
    ids=["flat", "back-from-an-explosion", "negative"],
)
def test_a_slow_program_that_does_not_is_put_to_the_test(losses: Any, monkeypatch: Any) -> None:
    result = ask_slow(slowly(0.06, losses), sgd(10.0), monkeypatch)
    assert result.status is Status.WARN
    assert "diverges" in result.message


def test_a_slow_program_with_a_known_fault_is_not_put_to_the_test(monkeypatch: Any) -> None:
    result = ask_slow(slowly(0.06, [2.0] * 120), sgd(10.0), monkeypatch, "LOSS101")
    assert result.status is Status.INCONCLUSIVE
    assert "LOSS101 has failed" in result.message
    assert result.steps == 0


def test_where_there_is_no_time_nothing_is_said(monkeypatch: Any) -> None:
    ramp_too_long = ask_slow(slowly(2.0, [2.0] * 5), sgd(1e-6), monkeypatch)
    trial_too_long = ask_slow(slowly(0.4, [2.0] * 20), sgd(1e-6), monkeypatch)
    assert ramp_too_long.status is trial_too_long.status is Status.INCONCLUSIVE
    assert (ramp_too_long.steps, trial_too_long.steps > 0) == (0, True)
    assert "too long to try out" in trial_too_long.message
