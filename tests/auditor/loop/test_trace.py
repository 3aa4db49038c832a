"""The recorder of events: what it hears, in which order, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.trace import EventKind, Recorder, louder_losses, norm_of
from nnaudit.targets.target import Target


@pytest.fixture
def loop() -> DirectLoop:
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    target = Target(
        model=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)),
        train_loader=lambda: DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8),
        loss=F.mse_loss,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.01),
        scheduler=lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.ConstantLR(o),
                torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
            ],
            [2],
        ),
    )
    return DirectLoop(target, torch.device("cpu"), 0)


def loss_of(loop: DirectLoop) -> torch.Tensor:
    x, y = next(iter(loop.train_loader))
    return F.mse_loss(loop.model(x), y)


def test_a_step_is_told_in_order(loop: DirectLoop) -> None:
    (optimizer,), (scheduler,) = loop.optimizers, loop.schedulers
    with Recorder(loop) as recorder:
        optimizer.zero_grad()
        loss = loss_of(loop)
        loss.backward()
        clip_grad_norm_(loop.model.parameters(), 0.01)
        clip_grad_value_(loop.model.parameters(), 0.001)
        optimizer.step()
        scheduler.step()
    events = recorder.take()
    assert [event.kind for event in events] == [
        EventKind.ZERO, EventKind.BACKWARD, EventKind.CLIP, EventKind.CLIP, EventKind.STEP,
        EventKind.SCHEDULE,
    ]  # fmt: skip
    zero, backward, norm, value, step, schedule = events
    assert zero.norms == (None,)
    assert backward.root == pytest.approx(loss.item())
    assert norm.clip is not None and norm.clip.limit == 0.01
    assert norm.clip.before == pytest.approx(backward.norms[0])
    assert value.norms[0] == pytest.approx(0.01, rel=1e-3)
    assert [used <= clip.limit * 1.001 for clip, used in step.clipped] == [True, True]
    assert not schedule.ahead and not schedule.explicit
    assert all(event.location and event.location.file == __file__ for event in events)
    assert recorder.take() == ()


def test_nothing_is_left_behind(loop: DirectLoop) -> None:
    places: list[tuple[Any, str]] = [
        (torch.autograd, "backward"),
        (torch.optim.Optimizer, "zero_grad"),
        (nn.Module, "zero_grad"),
        (torch.amp.GradScaler, "step"),
        (nn.utils, "clip_grad_value_"),
        (torch.optim.lr_scheduler.SequentialLR, "step"),
    ]
    before = [getattr(owner, name) for owner, name in places]
    with pytest.raises(ZeroDivisionError), Recorder(loop):
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name in places] == before
    assert not loop.optimizers[0]._optimizer_step_pre_hooks


def test_going_back_within_going_back_counts_once(loop: DirectLoop) -> None:
    x, y = next(iter(loop.train_loader))
    with Recorder(loop) as recorder:
        hidden = checkpoint(loop.model, x.requires_grad_(), use_reentrant=True)
        F.mse_loss(hidden, y).backward()
    assert [event.kind for event in recorder.take()] == [EventKind.BACKWARD]


def test_a_closure_is_seen_and_its_backward_lies_within_the_step() -> None:
    x = torch.randn(16, 3)
    target = Target(
        model=lambda: nn.Linear(3, 1),
        train_loader=lambda: DataLoader(TensorDataset(x, x[:, :1]), batch_size=8),
        loss=F.mse_loss,
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=2),
    )
    loop = DirectLoop(target, torch.device("cpu"), 0)
    with Recorder(loop) as recorder:
        loop.step(next(loop.batches()))
    events = recorder.take()
    assert events[0].kind is EventKind.STEP and events[0].closure
    assert all(e.within == 0 for e in events if e.kind is EventKind.BACKWARD)
    assert all(e.location is None for e in events)


class Twice(torch.optim.SGD):
    """Calls its closure twice, as an optimizer that looks ahead does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        super().step()
        with torch.enable_grad():
            closure()
        return super().step()


@pytest.mark.parametrize(
    ("kind", "order", "within"),
    [
        (torch.optim.SGD, ["zero_grad", "backward", "clip", "optimizer.step"], -1),
        (Twice, ["optimizer.step", *["zero_grad", "backward", "clip"] * 2], 0),
    ],
)
def test_what_a_closure_does_comes_before_the_step(
    loop: DirectLoop, kind: Any, order: list[str], within: int
) -> None:
    optimizer = kind(loop.model.parameters(), lr=0.1)
    loop.optimizers = (optimizer,)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(loop)
        loss.backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
        return loss

    with Recorder(loop) as recorder:
        optimizer.step(closure)
    events = recorder.take()
    assert [event.kind for event in events] == order
    step = next(event for event in events if event.kind is EventKind.STEP)
    assert step.closure is (within == 0)
    assert {e.within for e in events if e.kind is EventKind.BACKWARD} <= {within, 0}
    if within < 0:
        assert [used == pytest.approx(0.1, rel=1e-3) for _, used in step.clipped] == [True]


@pytest.mark.parametrize(("factor", "skipped"), [(1.0, False), (float("inf"), True)])
def test_a_scaler_tries_a_step_and_may_leave_it_out(
    loop: DirectLoop, factor: float, skipped: bool
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with Recorder(loop) as recorder:
        scaler.scale(factor * loss_of(loop)).backward()
        scaler.step(loop.optimizers[0])
        scaler.update()
    kinds = {event.kind: event for event in recorder.take()}
    assert kinds[EventKind.BACKWARD].scale == 256.0
    assert kinds[EventKind.ATTEMPT].skipped is skipped
    assert (EventKind.STEP in kinds) is not skipped


def test_a_louder_loss_has_louder_gradients(loop: DirectLoop) -> None:
    def size(make: Callable[[], Any]) -> float:
        loop.model.zero_grad()
        with make():
            loss_of(loop).backward()
        return norm_of(loop.model.parameters())

    assert size(lambda: louder_losses(8.0)) == pytest.approx(8 * size(lambda: louder_losses(1.0)))
