"""STEP101: weights that do not change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from author import AuthorLoop, ask, loss_of, perceptron, plain, target
from torch import Tensor, nn

from nnaudit.checks.step.parameters_move import ParametersMove
from nnaudit.report import Status


def test_an_optimizer_of_copies_fails() -> None:
    stale = target(optimizer=lambda m: torch.optim.SGD(copy.deepcopy(m).parameters(), 0.1))
    result = ask(ParametersMove, stale)
    assert result.status is Status.FAIL
    assert "copies" in result.message


def test_weights_that_are_set_back_fail() -> None:
    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        before = copy.deepcopy(loop.model.state_dict())
        loss = plain(loop, batch)
        loop.model.load_state_dict(before)
        return loss

    result = ask(ParametersMove, target(), body)
    assert result.status is Status.FAIL
    assert "set back" in result.message


class Forgetful(torch.optim.SGD):
    """Updates copies that it never writes back, for all but the first parameter."""

    def step(self, closure: Any = None) -> None:
        parameters = self.param_groups[0]["params"]
        with torch.no_grad():
            parameters[0] -= 0.1 * parameters[0].grad
            for parameter in parameters[1:]:
                parameter = parameter - 0.1 * parameter.grad  # noqa: PLW2901


def test_an_optimizer_that_forgets_some_fails_and_names_them() -> None:
    result = ask(ParametersMove, target(optimizer=lambda m: Forgetful(m.parameters(), 0.1)))
    assert result.status is Status.FAIL
    assert "3 of 4" in result.message and "0.bias" in result.message


SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
x = torch.randn(64, 4)
train_loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for epoch in range(3):
    for a, b in train_loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(a), b)
        loss.backward()
        optimizer.step()
"""


def test_a_backward_that_is_not_called_fails_and_is_shown(ask_script: Any) -> None:
    text = SCRIPT.replace("loss.backward()", "loss.backward")
    result = ask_script(ParametersMove, text)
    line = 1 + text.splitlines().index("        loss.backward")
    assert result.status is Status.FAIL, result.message
    assert result.location is not None and result.location.line == line
    assert f"line {line} names backward" in result.fix


def test_gradients_that_are_written_by_hand_pass(ask_script: Any) -> None:
    by_hand = "model.weight.grad, model.bias.grad = torch.autograd.grad(loss, model.parameters())"
    result = ask_script(ParametersMove, SCRIPT.replace("loss.backward()", by_hand))
    assert result.status is Status.PASS, result.message


def test_a_program_whose_own_loop_never_steps_fails() -> None:
    result = ask(ParametersMove, target(never_steps=True))
    assert result.status is Status.FAIL
    assert "takes no step" in result.message


def test_a_group_without_a_learning_rate_warns() -> None:
    groups = target(
        optimizer=lambda m: torch.optim.SGD(
            [{"params": m[0].parameters(), "lr": 0.0}, {"params": m[3].parameters()}], 0.1
        )
    )
    result = ask(ParametersMove, groups)
    assert result.status is Status.WARN
    assert "because their learning rate is 0" in result.message


def test_a_learning_rate_of_zero_that_nothing_raises_fails() -> None:
    result = ask(ParametersMove, target(optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.0)))
    assert result.status is Status.FAIL
    assert "learning rate is 0" in result.message


def test_a_rate_that_a_scheduler_may_raise_warns() -> None:
    result = ask(
        ParametersMove,
        target(
            optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.0),
            scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 1.0),
        ),
    )
    assert result.status is Status.WARN


def test_updates_below_rounding_warn() -> None:
    tiny = target(optimizer=lambda m: torch.optim.SGD(m.parameters(), 1e-12))
    result = ask(ParametersMove, tiny)
    assert result.status is Status.WARN
    assert "rounded away in" in result.message


class EveryThird(torch.optim.SGD):
    """Acts on every third call, as wrappers that accumulate do."""

    calls = 0

    def step(self, closure: Any = None) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            super().step()


class EveryEighth(EveryThird):
    def step(self, closure: Any = None) -> None:
        self.calls += 1
        if self.calls % 8 == 0:
            torch.optim.SGD.step(self)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda m: torch.optim.SGD(m.parameters(), 0.1),
        lambda m: torch.optim.AdamW(m.parameters(), 1e-4),
        lambda m: torch.optim.LBFGS(m.parameters()),
        lambda m: torch.optim.Rprop(m.parameters()),
        lambda m: torch.optim.Adagrad(m.parameters(), 1e-2),
        lambda m: EveryThird(m.parameters(), 0.1),
        lambda m: EveryEighth(m.parameters(), 0.1),
        lambda m: torch.optim.SGD(m[3].parameters(), 0.1),
    ],
    ids=["sgd", "adamw", "lbfgs", "rprop", "adagrad", "every third", "every eighth", "head only"],
)
def test_healthy_optimizers_pass(optimizer: Any) -> None:
    assert ask(ParametersMove, target(optimizer=optimizer)).status is Status.PASS


def test_a_warm_up_from_zero_passes() -> None:
    def scheduled(loop: AuthorLoop, batch: Any) -> Tensor:
        loss = plain(loop, batch)
        loop.schedulers[0].step()
        return loss

    warm = target(
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: max(0, s - 6) / 10)
    )
    assert ask(ParametersMove, warm, scheduled).status is Status.PASS


def test_a_parameter_held_at_its_bound_passes() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = perceptron()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.body(x)

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loss = plain(loop, batch)
        with torch.no_grad():
            loop.model.scale.clamp_(1.0, 1.0)
        return loss

    assert ask(ParametersMove, target(model=Scaled), body).status is Status.PASS


def test_weights_copied_from_masters_pass() -> None:
    """Mixed precision as it was done by hand: the optimizer holds float32 copies, copied back."""

    def build(m: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p.detach().clone() for p in m.parameters()], 0.1)

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        masters = loop.optimizers[0].param_groups[0]["params"]
        loop.model.zero_grad()
        loss = loss_of(loop, batch)
        loss.backward()
        for master, parameter in zip(masters, loop.model.parameters(), strict=True):
            master.grad = parameter.grad.clone()
        loop.optimizers[0].step()
        with torch.no_grad():
            for master, parameter in zip(masters, loop.model.parameters(), strict=True):
                parameter.copy_(master)
        return loss

    assert ask(ParametersMove, target(optimizer=build), body).status is Status.PASS


def test_steps_that_the_scaler_skips_say_nothing() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        loss = loss_of(loop, batch)
        scaler.scale(loss * float("inf")).backward()
        scaler.step(loop.optimizers[0])
        scaler.update()
        return loss

    assert ask(ParametersMove, target(), body).status is Status.INCONCLUSIVE


def test_weights_that_are_set_back_from_elsewhere_fail() -> None:
    """Sharpness-aware steps begin at weights that differ from step to step."""

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        optimizer, parameters = loop.optimizers[0], list(loop.model.parameters())
        optimizer.zero_grad()
        loss = loss_of(loop, batch)
        loss.backward()
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p in parameters:
                p.add_(0.1 * p.grad)
        optimizer.zero_grad()
        loss_of(loop, batch).backward()
        optimizer.step()
        with torch.no_grad():
            for p, was in zip(parameters, before, strict=True):
                p.copy_(was)
        return loss

    result = ask(ParametersMove, target(), body)
    assert result.status is Status.FAIL
    assert "set back" in result.message


def test_a_warm_up_that_begins_at_zero_is_held_at_the_planned_rate() -> None:
    def warming(m: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(m.parameters(), 1e-2)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 500)
        return optimizer

    assert ask(ParametersMove, target(optimizer=warming)).status is Status.PASS
