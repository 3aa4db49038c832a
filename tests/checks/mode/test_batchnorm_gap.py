"""MODE104: batch normalisation that is another network in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from nnaudit.checks.mode.batchnorm_gap import BatchnormGap
from nnaudit.probes.first_steps import FirstSteps
from nnaudit.probes.training_run import Modes, TrainingRun
from nnaudit.report import Status
from nnaudit.targets.target import Target
from support.measurements import training
from support.verdicts import verdict


def net(**options: float) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(12, 32),
        nn.BatchNorm1d(32, **options),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(32, 32),
        nn.BatchNorm1d(32, **options),
        nn.ReLU(),
        nn.Linear(32, 5),
    )


@pytest.mark.parametrize("rows", [2])
def test_two_rows_per_batch_warn(rows: int, ask) -> None:
    result = ask(BatchnormGap, net(), batch_size=rows)
    assert result.status is Status.WARN
    assert "2 rows" in result.message


@pytest.mark.parametrize("momentum", [0.0, 0.99, 1e-3])
def test_a_momentum_that_does_not_average_warns(momentum: float, ask) -> None:
    result = ask(BatchnormGap, net(momentum=momentum))
    assert result.status is Status.WARN
    assert f"momentum {momentum:g}" in result.message


class Whitened(nn.Module):
    """Its answer leans on the statistics of the batch, which by themselves tell the class."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12, affine=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 50.0
        return self.head(self.norm(x))


def test_an_input_that_differs_between_modes_warns(ask) -> None:
    """Shifted in training only, so that the averages are of something else."""
    result = ask(BatchnormGap, Whitened)
    assert result.status is Status.WARN
    assert "does not carry over to eval mode" in result.message


@pytest.mark.parametrize(("steps", "status"), [(99, Status.INCONCLUSIVE), (100, Status.WARN)])
def test_a_gap_of_a_run_that_was_cut_short_is_no_verdict(steps: int, status: Status) -> None:
    seen = SimpleNamespace(training_flags={"1": True})
    measured = {
        FirstSteps: SimpleNamespace(observations=(seen,), batches=(torch.zeros(32, 12),)),
        TrainingRun: training([1.0] * steps, modes=Modes(train=1.0, eval=2.0, settled=1.6)),
    }
    result = verdict(BatchnormGap, measured, target=Target(net(), []))
    assert result.status is status, result.message


def test_networks_that_work_against_each_other_get_no_answer(ask) -> None:
    def several(model: Whitened) -> list[torch.optim.Optimizer]:
        bias = torch.optim.Adam([model.head.bias], 3e-3)
        return [torch.optim.Adam([model.head.weight], 3e-3), bias]

    assert ask(BatchnormGap, Whitened, optimizer=several).status is Status.INCONCLUSIVE


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.5, None])
@pytest.mark.parametrize("rows", [8, pytest.param(32, marks=pytest.mark.exhaustive)])
def test_usual_settings_pass(momentum: float | None, rows: int, ask) -> None:
    result = ask(BatchnormGap, net(momentum=momentum), batch_size=rows)
    assert result.status is Status.PASS


def test_without_batch_normalisation_it_is_skipped(ask) -> None:
    def plain() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5))

    def untracked() -> nn.Module:
        return nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16, track_running_stats=False), nn.Linear(16, 5)
        )

    assert ask(BatchnormGap, plain).status is Status.SKIP
    assert ask(BatchnormGap, untracked).status is Status.SKIP
