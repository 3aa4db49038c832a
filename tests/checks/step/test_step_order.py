"""STEP107: parts of a step in the wrong order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from author import AuthorLoop, ask, loss_of, perceptron, plain, target
from torch import Tensor, nn

from nnaudit.checks.step.step_order import StepOrder
from nnaudit.report import Status
from support.verdicts import ask_script


def clips_late(loop: AuthorLoop, batch: Any) -> Tensor:
    loop.optimizers[0].zero_grad()
    loss = loss_of(loop, batch)
    loss.backward()
    loop.optimizers[0].step()
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    return loss


def clips_late_and_zeroes(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = loss_of(loop, batch)
    loss.backward()
    loop.optimizers[0].step()
    nn.utils.clip_grad_value_(loop.model.parameters(), 1.0)
    loop.optimizers[0].zero_grad()
    return loss


def clips_early(loop: AuthorLoop, batch: Any) -> Tensor:
    loop.optimizers[0].zero_grad()
    loss = loss_of(loop, batch)
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    loss.backward()
    loop.optimizers[0].step()
    return loss


def steps_twice(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = plain(loop, batch)
    loop.optimizers[0].step()
    return loss


def schedules_first(loop: AuthorLoop, batch: Any) -> Tensor:
    loop.schedulers[0].step()
    return plain(loop, batch)


def schedules_last(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = plain(loop, batch)
    loop.schedulers[0].step()
    return loss


def cosine() -> Any:
    return target(scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1000))


@pytest.mark.parametrize("body", [clips_late, clips_late_and_zeroes])
def test_a_clip_after_the_step_fails(body: Callable[..., Tensor]) -> None:
    result = ask(StepOrder, target(), body)
    assert result.status is Status.FAIL
    assert "clipped after optimizer.step()" in result.message
    assert result.location is not None and result.location.file == __file__


def test_a_clip_before_backward_fails() -> None:
    result = ask(StepOrder, target(), clips_early)
    assert result.status is Status.FAIL
    assert "clipped before backward makes them" in result.message


def test_a_second_step_fails() -> None:
    result = ask(StepOrder, target(), steps_twice)
    assert result.status is Status.FAIL
    assert "again" in result.message


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_a_scheduler_before_the_first_step_fails() -> None:
    result = ask(StepOrder, cosine(), schedules_first)
    assert result.status is Status.FAIL
    assert "scheduler.step() comes before" in result.message


def early(make: Callable[..., Any], times: int = 1) -> Callable[..., Any]:
    def made(optimizer: torch.optim.Optimizer) -> Any:
        scheduler = make(optimizer)
        for _ in range(times):
            scheduler.step()
        return scheduler

    return made


def stepped(optimizer: torch.optim.Optimizer) -> Any:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return early(decay)(optimizer)


def decay(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize(
    ("make", "status"),
    [
        (early(decay), Status.FAIL),
        (early(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 0.9**s)), Status.FAIL),
        # A first rate of zero that is skipped, a run that goes on from a checkpoint, and none.
        (early(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: s / 9)), Status.PASS),
        (early(decay, times=3), Status.PASS),
        (stepped, Status.PASS),
        (decay, Status.PASS),
    ],
)
def test_a_scheduler_stepped_as_the_epoch_begins(make: Any, status: Status) -> None:
    assert ask(StepOrder, target(scheduler=make), plain).status is status


def test_a_scheduler_after_the_step_passes() -> None:
    assert ask(StepOrder, cosine(), schedules_last).status is Status.PASS


def test_a_scheduler_that_is_told_the_epoch_may_come_first() -> None:
    steps = iter(range(1, 1000))

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0]._opt_called = True
        loop.schedulers[0].step(next(steps) / 20)
        return plain(loop, batch)

    warm = target(scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 10))
    assert ask(StepOrder, warm, body).status is Status.PASS


def test_a_step_that_a_scaler_left_out_counts_before_the_scheduler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        loss = loss_of(loop, batch)
        scaler.scale(loss * float("inf")).backward()
        scaler.step(loop.optimizers[0])
        scaler.update()
        loop.optimizers[0]._opt_called = True  # or PyTorch itself would warn
        loop.schedulers[0].step()
        return loss

    assert ask(StepOrder, cosine(), body).status is Status.PASS


def rotated(loop: AuthorLoop, batch: Any) -> Tensor:
    """The gradient of the batch before is clipped and used first; then comes this one's."""
    if loop.optimizers[0].state or any(p.grad is not None for p in loop.model.parameters()):
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    loop.optimizers[0].step()
    loop.optimizers[0].zero_grad()
    loss = loss_of(loop, batch)
    loss.backward()
    return loss


def clips_twice_around(loop: AuthorLoop, batch: Any) -> Tensor:
    for optimizer, part in zip(loop.optimizers, (loop.model[0], loop.model[3]), strict=True):
        optimizer.zero_grad()
        del part
    loss = loss_of(loop, batch)
    loss.backward()
    loop.optimizers[0].step()
    nn.utils.clip_grad_norm_(loop.model[3].parameters(), 1.0)
    loop.optimizers[1].step()
    return loss


def second_order(loop: AuthorLoop, batch: Any) -> Tensor:
    """Steps once to look ahead, takes a new gradient there, and steps again."""
    plain(loop, batch)
    return plain(loop, batch)


@pytest.mark.parametrize("body", [plain, rotated, second_order])
def test_orders_that_make_sense_pass(body: Callable[..., Tensor]) -> None:
    assert ask(StepOrder, target(), body).status is Status.PASS


def parts(m: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(part.parameters(), 0.1) for part in (m[0], m[3])]


def test_a_clip_for_a_later_optimizer_passes() -> None:
    both = target(model=perceptron, optimizer=parts)
    assert ask(StepOrder, both, clips_twice_around).status is Status.PASS


def test_an_optimizer_that_is_never_stepped_warns() -> None:
    result = ask(StepOrder, target(optimizer=parts), plain)
    assert result.status is Status.WARN
    assert "never steps" in result.message


def test_an_optimizer_that_steps_now_and_then_passes() -> None:
    turns = iter(range(1000))

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loss = plain(loop, batch)
        if next(turns) % 10 == 9:
            loop.optimizers[1].step()
            loop.optimizers[1].zero_grad()
        return loss

    assert ask(StepOrder, target(optimizer=parts), body).status is Status.PASS


@pytest.mark.parametrize("outer_steps", [True, False])
def test_an_optimizer_within_another_is_stepped_by_it(outer_steps: bool) -> None:
    """As in sharpness-aware minimisation: both hold the same parameters, one is seen to step."""

    class Outer(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner
            self.param_groups = inner.param_groups

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.inner.step()

    def both(model: nn.Module) -> Any:
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        return [Outer(inner), inner]

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        outer = loop.optimizers[0]
        outer.zero_grad()
        loss = loss_of(loop, batch)
        loss.backward()
        if outer_steps:
            outer.step()
        else:
            outer.inner.step()  # type: ignore[attr-defined]
        return loss

    result = ask(StepOrder, target(optimizer=both), body)
    assert result.status is Status.PASS, result.message


def test_module_form_and_a_closure_pass() -> None:
    assert ask(StepOrder, target()).status is Status.PASS
    lbfgs = target(optimizer=lambda m: torch.optim.LBFGS(m.parameters()))
    assert ask(StepOrder, lbfgs).status is Status.PASS


OUTSIDE = """
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(320, 6)
loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 32, shuffle=True)
model = torch.nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for epoch in range(30):
    BEFORE
    for a, b in loader:
        INSIDE
        loss = F.cross_entropy(model(a), b)
        BACKWARD
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("before", "inside", "backward", "status"),
    [
        ("pass", "optimizer.zero_grad()", "loss.backward()", Status.FAIL),
        ("optimizer.zero_grad()", "pass", "loss.backward()", Status.WARN),
        ("optimizer.zero_grad()", "pass", "(loss / len(loader)).backward()", Status.PASS),
    ],
)
def test_a_step_after_the_loop_over_the_batches(
    tmp_path: Path, before: str, inside: str, backward: str, status: Status
) -> None:
    source = OUTSIDE.replace("BEFORE", before).replace("INSIDE", inside)
    result = ask_script(StepOrder, tmp_path / "train.py", source.replace("BACKWARD", backward))
    assert result.status is status
    if status is not Status.PASS:
        assert "after the loop over its 10 batches" in result.message
