"""LOSS107: terms that train nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.constant_term import ConstantTermOfLoss
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.constant_terms import ConstantTerm
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

Step = Callable[[nn.Module, Any], Tensor]


def judged(*terms: ConstantTerm) -> Result:
    return ConstantTermOfLoss().run(cast(Audit, SimpleNamespace(probe=lambda probe: terms)))


def test_a_term_without_a_graph_fails_and_says_what_it_adds() -> None:
    result = judged(ConstantTerm("kl_div", None, 0.5, 16.0, equal=False))
    assert result.status is Status.FAIL
    assert "kl_div adds 8 to the loss" in result.message
    assert "not connected" in result.message
    assert "same values" in judged(ConstantTerm("mse", None, 0.0, 1.0, equal=True)).message
    assert judged().status is Status.PASS


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


def audited(step: Step) -> Result:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    target = Target(
        Pair,
        DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16),
        training_step=step,
        optimizer=lambda m: torch.optim.SGD(m.student.parameters(), 0.1),
    )
    return run_check(ConstantTermOfLoss, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def distilled(model: Any, batch: Any) -> Tensor:
    logits, teacher = model(batch[0]), model.teacher(batch[0])
    soft = F.kl_div(teacher.log_softmax(1), logits.detach().softmax(1), reduction="batchmean")
    return F.cross_entropy(logits, batch[1]) + 3 * soft


def with_itself(model: Any, batch: Any) -> Tensor:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]) + F.mse_loss(logits, logits)


@pytest.mark.parametrize("step", [distilled, with_itself])
def test_terms_that_train_nothing_fail(step: Step) -> None:
    result = audited(step)
    assert result.status is Status.FAIL, result.message
    assert result.location is not None


def logged(model: Any, batch: Any) -> Tensor:
    logits = model(batch[0])
    F.mse_loss(logits.detach(), model.teacher(batch[0]))
    return F.cross_entropy(logits, batch[1])


def weighted(model: Any, batch: Any) -> Tensor:
    """The loss is divided by that of the teacher, which has no graph."""
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]) / F.cross_entropy(model.teacher(batch[0]), batch[1])


def switched_off(model: Any, batch: Any) -> Tensor:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]) + 0.0 * F.mse_loss(logits.detach(), logits.detach())


def rightly_distilled(model: Any, batch: Any) -> Tensor:
    logits, teacher = model(batch[0]), model.teacher(batch[0])
    soft = F.kl_div(logits.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    return F.cross_entropy(logits, batch[1]) + 3 * soft


def not_yet_apart(model: Any, batch: Any) -> Tensor:
    """A consistency that is zero until the student has moved away from its copy."""
    if not hasattr(model, "copied"):
        model.teacher.load_state_dict(model.student.state_dict())
        model.copied = True
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]) + F.mse_loss(logits, model.teacher(batch[0]))


@pytest.mark.parametrize("step", [logged, weighted, switched_off, rightly_distilled, not_yet_apart])
def test_terms_that_are_logged_weights_off_or_trained_pass(step: Step) -> None:
    assert audited(step).status is Status.PASS


# --- terms that follow the parameters and have no gradient ----------------------------------------


def penalised(penalty: Callable[[nn.Module], Any]) -> Step:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y) + 0.05 * penalty(model)

    return step


def size(model: Any, detached: bool) -> Tensor:
    return sum(
        ((p.data if detached else p).square().sum() for p in model.student.parameters()),
        start=torch.zeros(()),
    )


@pytest.mark.parametrize(
    "penalty",
    [lambda m: size(m, True), lambda m: size(m, False).item(), lambda m: size(m, False).detach()],
    ids=["data", "item", "detach"],
)
def test_a_penalty_without_a_gradient_fails(penalty: Callable[[nn.Module], Any]) -> None:
    result = audited(penalised(penalty))
    assert result.status is Status.FAIL, result.message
    assert "no gradient" in result.message


def stabilised(model: nn.Module, batch: Any) -> Tensor:
    """The mean of exponentials, whose largest is taken out first and put back."""
    energies = model(batch[0]).flatten()
    largest = energies.max().detach()
    return largest + (energies - largest).exp().mean().log()


@pytest.mark.parametrize(
    "step",
    [
        penalised(lambda m: size(m, False)),
        penalised(lambda m: 0.3),
        stabilised,
        penalised(lambda m: size(m, False) - size(m, False).detach()),
    ],
    ids=["with its gradient", "a constant", "a trick that cancels out", "the gradient alone"],
)
def test_addends_that_lack_no_gradient_pass(step: Step) -> None:
    assert audited(step).status is Status.PASS
