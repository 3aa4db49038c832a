"""STEP104: clips that do not hold, or hold too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from author import AuthorLoop, ask, loss_of, plain, target
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from nnaudit.checks.step.clipping import Clipping
from nnaudit.checks.step.step_order import StepOrder
from nnaudit.report import Status


def clipped(limit: float, *, by: str = "norm", scale: float = 1.0) -> Callable[..., Tensor]:
    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        loss = scale * loss_of(loop, batch)
        loss.backward()
        if by == "norm":
            clip_grad_norm_(loop.model.parameters(), limit)
        elif by == "largest":
            clip_grad_norm_(loop.model.parameters(), limit, norm_type=float("inf"))
        else:
            clip_grad_value_(loop.model.parameters(), limit)
        loop.optimizers[0].step()
        return loss

    return body


def amp(*, unscales: bool) -> Callable[..., Tensor]:
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        loss = loss_of(loop, batch)
        scaler.scale(loss).backward()
        if unscales:
            scaler.unscale_(loop.optimizers[0])
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
        scaler.step(loop.optimizers[0])
        scaler.update()
        return loss

    return body


def clips_a_part(loop: AuthorLoop, batch: Any) -> Tensor:
    loop.optimizers[0].zero_grad()
    loss = loss_of(loop, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
    second = loss_of(loop, batch)
    second.backward()
    loop.optimizers[0].step()
    return loss


def test_a_clip_of_scaled_gradients_fails() -> None:
    result = ask(Clipping, target(), amp(unscales=False))
    assert result.status is Status.FAIL
    assert "65536" in result.message
    assert "unscale_" in result.fix


def test_a_clip_before_the_last_backward_fails() -> None:
    result = ask(Clipping, target(), clips_a_part)
    assert result.status is Status.FAIL
    assert result.location is not None and result.location.file == __file__


def test_a_clip_far_below_every_gradient_warns_for_sgd_and_is_noted_for_adam() -> None:
    assert ask(Clipping, target(), clipped(5e-3)).status is Status.WARN
    adam = target(optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-3))
    assert ask(Clipping, adam, clipped(1e-4)).status is Status.NOTE


def test_a_clip_that_stops_the_training_fails() -> None:
    result = ask(Clipping, target(), clipped(1e-4))
    assert result.status is Status.FAIL
    assert "A step moves the weights by" in result.message
    fast = target(optimizer=lambda m: torch.optim.SGD(m.parameters(), 100.0))
    assert ask(Clipping, fast, clipped(1e-4)).status is Status.WARN  # by design, perhaps


@pytest.mark.parametrize("by", ["norm", "largest", "value"])
@pytest.mark.parametrize("limit", [100.0, 0.1])
def test_clips_that_hold_pass(by: str, limit: float) -> None:
    result = ask(Clipping, target(), clipped(limit, by=by))
    assert result.status is Status.PASS


def test_clipping_after_unscaling_passes() -> None:
    assert ask(Clipping, target(), amp(unscales=True)).status is Status.PASS


def test_clips_in_bfloat16_pass() -> None:
    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        x, y = batch
        loop.optimizers[0].zero_grad()
        loss = F.cross_entropy(loop.model(x.bfloat16()).float(), y)
        loss.backward()
        clip_grad_norm_(loop.model.parameters(), 0.3)
        loop.optimizers[0].step()
        return loss

    low = target(model=lambda: nn.Linear(12, 5).bfloat16())
    assert ask(Clipping, low, body).status is Status.PASS


def test_a_clip_in_a_training_step_is_seen_in_module_form() -> None:
    """The usual training_step returns the loss: a clip in it comes before there is a gradient."""

    def training_step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y)

    assert ask(Clipping, target(training_step=training_step)).status is Status.SKIP


def clipping(what: Callable[[AuthorLoop], Any], limit: float = 1e-3) -> Callable[..., Tensor]:
    """A step that clips ``what(loop)`` between backward and step."""

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        loss = loss_of(loop, batch)
        loss.backward()
        clip_grad_norm_(what(loop), limit)
        loop.optimizers[0].step()
        return loss

    return body


def gradients_of(loop: AuthorLoop) -> list[Tensor]:
    return [p.grad for p in loop.model.parameters() if p.grad is not None]


def copies_of(loop: AuthorLoop) -> list[Tensor]:
    copies = [p.detach().clone() for p in loop.model.parameters()]
    for copy, p in zip(copies, loop.model.parameters(), strict=True):
        copy.grad = None if p.grad is None else p.grad.clone()
    return copies


def exhausted(loop: AuthorLoop) -> Any:
    return iter(())


def unrelated(loop: AuthorLoop) -> list[Tensor]:
    other = torch.zeros(3)
    other.grad = torch.ones(3)
    return [other]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (exhausted, "no tensors"),
        (gradients_of, "none of the tensors that the clip gets has a gradient"),
        (copies_of, "a copy of the gradients"),
    ],
)
def test_a_clip_that_misses_the_gradients_fails(
    what: Callable[[AuthorLoop], Any], said: str
) -> None:
    result = ask(Clipping, target(), clipping(what))
    assert result.status is Status.FAIL
    assert said in result.message
    assert ask(StepOrder, target(), clipping(what)).status is Status.PASS


def test_a_clip_of_no_tensors_warns_while_gradients_are_small() -> None:
    assert ask(Clipping, target(), clipping(exhausted, limit=1e3)).status is Status.WARN


@pytest.mark.parametrize("what", [gradients_of, copies_of])
def test_a_clip_that_would_not_bind_is_not_missed(what: Callable[[AuthorLoop], Any]) -> None:
    assert ask(Clipping, target(), clipping(what, limit=1e3)).status is Status.SKIP


def test_a_clip_of_something_else_is_skipped() -> None:
    result = ask(Clipping, target(), clipping(unrelated))
    assert result.status is Status.SKIP
    assert "no optimizer holds" in result.message


def test_gradients_copied_to_float32_after_the_clip_pass() -> None:
    masters: list[Tensor] = []

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        held = [p for group in loop.optimizers[0].param_groups for p in group["params"]]
        loop.model.zero_grad()
        loss = loss_of(loop, batch)
        loss.backward()
        clip_grad_norm_(loop.model.parameters(), 1e-3)
        for p, master in zip(loop.model.parameters(), held, strict=True):
            master.grad = None if p.grad is None else p.grad.clone()
        loop.optimizers[0].step()
        return loss

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        masters[:] = [p.detach().clone().requires_grad_() for p in model.parameters()]
        return torch.optim.SGD(masters, 0.1)

    assert ask(Clipping, target(optimizer=optimizer), body).status is Status.SKIP


def test_a_clip_below_the_epsilon_of_adam_warns() -> None:
    adam = target(optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-3))
    result = ask(Clipping, adam, clipped(1e-8))
    assert result.status is Status.WARN
    assert "eps=1e-08" in result.message


def test_no_clip_is_skipped() -> None:
    assert ask(Clipping, target(), plain).status is Status.SKIP
