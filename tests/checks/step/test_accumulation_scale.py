"""STEP103: gradients summed over micro-batches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from author import AuthorLoop, ask, loss_of, perceptron, plain, target
from torch import Tensor, nn

from nnaudit.checks.step import accumulation_scale
from nnaudit.checks.step.accumulation_scale import AccumulationScale
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.base import Step
from nnaudit.measure.accelerate import Declared, declared_accumulation
from nnaudit.report import Status


def accumulating(divisor: float, *, clip: bool = False, k: int = 4) -> Callable[..., Tensor]:
    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        for _ in range(k):
            loss = loss_of(loop, batch)
            (loss / divisor).backward()
        if clip:
            nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
        loop.optimizers[0].step()
        return loss

    return body


def adamw(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(m.parameters(), 1e-3)


def test_a_loss_that_is_not_divided_fails() -> None:
    result = ask(AccumulationScale, target(), accumulating(1))
    assert result.status is Status.FAIL
    assert "4 batches" in result.message
    assert result.fix == "(loss / 4).backward()"
    assert result.location is not None


class Trainer:
    """Stands in for transformers' Trainer, which is slow to import."""

    def __init__(self, model: nn.Module, accepts: bool) -> None:
        self.model, self.model_accepts_loss_kwargs = model, accepts


@pytest.mark.parametrize(
    ("accepts", "status"), [(True, Status.WARN), (False, Status.FAIL), (None, Status.FAIL)]
)
def test_a_division_that_the_trainer_leaves_to_the_model_is_warned_of(
    accepts: bool | None, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.trainer", SimpleNamespace(Trainer=Trainer))
    model = nn.Sequential(*perceptron())
    trainer = None if accepts is None else Trainer(model, accepts)
    result = ask(AccumulationScale, target(model=model), accumulating(1))
    assert result.status is status
    assert ("accepts_loss_kwargs" in result.fix) is (status is Status.WARN)
    del trainer


def test_a_loss_divided_by_too_little_fails() -> None:
    assert ask(AccumulationScale, target(), accumulating(2, k=8)).status is Status.FAIL


def test_an_optimizer_that_hides_it_is_named_unless_gradients_are_clipped() -> None:
    adam = target(optimizer=adamw)
    hidden = ask(AccumulationScale, adam, accumulating(1))
    felt = ask(AccumulationScale, adam, accumulating(1, clip=True))
    assert (hidden.status, felt.status) == (Status.FAIL, Status.FAIL)
    assert "AdamW divides by the gradient's size" in hidden.message
    assert "AdamW" not in felt.message


@pytest.mark.parametrize("optimizer", [None, adamw])
def test_a_loss_that_is_divided_passes(optimizer: Any) -> None:
    changes = {"optimizer": optimizer} if optimizer else {}
    assert ask(AccumulationScale, target(**changes), accumulating(4)).status is Status.PASS


def test_a_scaled_loss_that_is_divided_passes_and_one_that_is_not_fails() -> None:
    def body(divisor: float) -> Callable[..., Tensor]:
        scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)

        def run(loop: AuthorLoop, batch: Any) -> Tensor:
            loop.optimizers[0].zero_grad()
            for _ in range(3):
                loss = loss_of(loop, batch)
                scaler.scale(loss / divisor).backward()
            scaler.step(loop.optimizers[0])
            scaler.update()
            return loss

        return run

    assert ask(AccumulationScale, target(), body(3)).status is Status.PASS
    assert ask(AccumulationScale, target(), body(1)).status is Status.FAIL


def two_losses(loop: AuthorLoop, batch: Any) -> Tensor:
    x, y = batch
    loop.optimizers[0].zero_grad()
    first = F.cross_entropy(loop.model(x), y)
    first.backward()
    second = F.multi_margin_loss(loop.model(x), y)
    second.backward()
    loop.optimizers[0].step()
    return first + second


def two_views(loop: AuthorLoop, batch: Any) -> Tensor:
    x, y = batch
    loop.optimizers[0].zero_grad()
    total = torch.zeros(())
    for view in (x, x.flip(1)):
        loss = F.cross_entropy(loop.model(view), y)
        loss.backward()
        total = total + loss.detach()
    loop.optimizers[0].step()
    return total


def halves(loop: AuthorLoop, batch: Any) -> Tensor:
    x, y = batch
    loop.optimizers[0].zero_grad()
    total = torch.zeros(())
    for half in (slice(0, 16), slice(16, 32)):
        loss = F.cross_entropy(loop.model(x[half]), y[half])
        loss.backward()
        total = total + loss.detach()
    loop.optimizers[0].step()
    return total


def quarters(divisor: float) -> Callable[..., Tensor]:
    def run(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        total = torch.zeros(())
        for x, y in zip(*(part.chunk(4) for part in batch), strict=True):
            loss = F.cross_entropy(loop.model(x), y)
            (loss / divisor).backward()
            total = total + loss.detach() / 4
        loop.optimizers[0].step()
        return total

    return run


def test_parts_of_a_batch_whose_losses_are_not_divided_fail() -> None:
    result = ask(AccumulationScale, target(), quarters(1))
    assert result.status is Status.FAIL
    assert "4 times" in result.message
    assert ask(AccumulationScale, target(), quarters(4)).status is Status.PASS


def summed(loop: AuthorLoop, batch: Any) -> Tensor:
    x, y = batch
    loop.optimizers[0].zero_grad()
    for _ in range(2):
        loss = F.cross_entropy(loop.model(x), y, reduction="sum")
        (loss / 64).backward()
    loop.optimizers[0].step()
    return loss


@pytest.mark.parametrize("body", [two_losses, two_views, halves, summed])
def test_what_may_not_be_accumulation_is_not_judged(body: Callable[..., Tensor]) -> None:
    assert ask(AccumulationScale, target(), body).status is Status.INCONCLUSIVE


def test_one_backward_per_step_is_skipped() -> None:
    assert ask(AccumulationScale, target(), plain).status is Status.SKIP
    assert ask(AccumulationScale, target(model=perceptron)).status is Status.SKIP


def adversarial(zeroing: bool) -> Callable[..., Tensor]:
    """Three passes move the inputs up the loss, a fourth makes the gradient of the weights."""

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        x, y = batch
        optimizer, moved = loop.optimizers[0], x.clone()
        optimizer.zero_grad()
        for _ in range(3):
            moved.requires_grad_(True)
            loss_of(loop, (moved, y)).backward()
            moved = (moved + 0.01 * moved.grad.sign()).detach()
        if zeroing:
            optimizer.zero_grad()
        loss = loss_of(loop, (moved, y))
        loss.backward()
        optimizer.step()
        return loss

    return body


def test_passes_that_are_zeroed_before_the_step_are_not_accumulated() -> None:
    result = ask(AccumulationScale, target(), adversarial(zeroing=True))
    assert result.status is Status.SKIP
    assert "zeroed before" in result.message


def test_passes_that_are_left_in_the_gradient_are_not_taken_for_it_either() -> None:
    assert ask(AccumulationScale, target(), adversarial(zeroing=False)).status in (
        Status.INCONCLUSIVE,
        Status.FAIL,
    )


def test_zeroing_between_backward_and_step_is_not_skipped() -> None:
    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        for _ in range(4):
            loss = loss_of(loop, batch)
            loss.backward()
        loop.optimizers[0].zero_grad()
        loop.optimizers[0].step()
        return loss

    assert ask(AccumulationScale, target(), body).status is not Status.SKIP


class Batchwise(AuthorLoop):
    """A loop whose step takes as many batches as it goes back from."""

    handed = 4

    def step(self, batch: Any, *, observe: bool = False, losses: bool = False) -> Step:
        taken = super().step(batch, observe=observe, losses=losses)
        return replace(taken, handed=self.handed)


def zeroed_each_time(loop: AuthorLoop, batch: Any) -> Tensor:
    for _ in range(4):
        loop.optimizers[0].zero_grad()
        loss = loss_of(loop, batch)
        (loss / 4).backward()
    loop.optimizers[0].step()
    return loss


@pytest.mark.parametrize(("handed", "status"), [(4, Status.FAIL), (1, Status.SKIP)])
def test_batches_whose_gradients_are_thrown_away_fail(handed: int, status: Status) -> None:
    """Several passes over one batch, of which the last counts, are for adversarial examples."""
    torch.manual_seed(0)
    loop = Batchwise(target(), zeroed_each_time)
    loop.handed = handed
    result = run_check(AccumulationScale, Audit(loop))
    assert result.status is status
    if status is Status.FAIL:
        assert "those of 3 are thrown away" in result.message


def token_means(reduction: str) -> Callable[..., Tensor]:
    """Four batches a step, of rows whose targets mostly do not count in every other one."""
    rounds = iter(range(100))

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        x, y = batch
        few = torch.where(torch.arange(len(y)) < 2, y, -100) if next(rounds) % 2 else y
        loop.optimizers[0].zero_grad()
        for _ in range(4):
            loss = F.cross_entropy(loop.model(x), few, reduction=reduction)
            divisor = 4 if reduction == "mean" else 4 * (few >= 0).sum()
            (loss / divisor).backward()
        loop.optimizers[0].step()
        return loss

    return body


@pytest.mark.parametrize(("reduction", "warns"), [("mean", True), ("sum", False)])
def test_means_of_means_over_unequal_numbers_of_targets_warn(reduction: str, warns: bool) -> None:
    torch.manual_seed(0)
    loop = Batchwise(target(), token_means(reduction))
    result = run_check(AccumulationScale, Audit(loop))
    assert (result.status is Status.WARN) is warns, result.message


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (Declared(8, prepared=False), "not given to accelerator.prepare()"),
        (Declared(8, prepared=True), "no accumulate() is around"),
    ],
)
def test_accelerate_divides_and_every_batch_steps(
    monkeypatch: pytest.MonkeyPatch, declared: Declared, said: str
) -> None:
    monkeypatch.setattr(accumulation_scale, "declared_accumulation", lambda loop: declared)
    result = ask(AccumulationScale, target(), plain)
    assert result.status is Status.FAIL
    assert said in result.message
    # Where it is in effect, a step has its backward passes.
    assert ask(AccumulationScale, target(), accumulating(4)).status is Status.PASS


@pytest.mark.parametrize(("divisor", "status"), [(4, Status.PASS), (16, Status.WARN)])
def test_a_loss_that_accelerate_and_the_program_divide_warns(
    monkeypatch: pytest.MonkeyPatch, divisor: float, status: Status
) -> None:
    declared = Declared(4, prepared=True)
    monkeypatch.setattr(accumulation_scale, "declared_accumulation", lambda loop: declared)
    result = ask(AccumulationScale, target(), accumulating(divisor))
    assert result.status is status, result.message
    assert ("0.25 times their mean" in result.message) is (status is Status.WARN)


def test_only_the_accelerator_of_the_audited_network_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Accelerator:
        def __init__(self, model: nn.Module, optimizers: list[Any], steps: int) -> None:
            self._models, self._optimizers = [model], optimizers
            self.gradient_accumulation_steps = steps

    monkeypatch.setitem(
        sys.modules, "accelerate", cast(Any, SimpleNamespace(Accelerator=Accelerator))
    )
    loop = AuthorLoop(target(), plain)
    others = Accelerator(nn.Linear(2, 2), [], 8)
    assert declared_accumulation(loop) is None, others
    single = Accelerator(loop.model, [], 1)
    assert declared_accumulation(loop) is None, single
    wrapper = SimpleNamespace(optimizer=loop.optimizers[0])
    mine = Accelerator(loop.model, [wrapper], 4)
    assert declared_accumulation(loop) == Declared(4, prepared=True), mine
    mine._optimizers = []
    assert declared_accumulation(loop) == Declared(4, prepared=False)


def two_players(*, again: bool) -> Callable[..., Tensor]:
    """A head and a body of their own optimizers and losses; the head's twice before it steps."""

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        x, y = batch
        first, second = loop.optimizers
        first.zero_grad()
        for _ in range(2 if again else 1):
            loss_of(loop, (x, y)).backward()
        first.step()
        second.zero_grad()
        loss = loss_of(loop, (x, y))
        loss.backward()
        second.step()
        return loss

    return body


def two_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    halves = list(model.parameters())
    return [torch.optim.SGD(halves[:2], lr=0.01), torch.optim.SGD(halves[2:], lr=0.01)]


@pytest.mark.parametrize(("again", "status"), [(False, Status.SKIP), (True, Status.INCONCLUSIVE)])
def test_of_several_optimizers_a_loss_each_is_not_accumulated(again: bool, status: Status) -> None:
    program = target(model=perceptron, optimizer=two_optimizers)
    assert ask(AccumulationScale, program, two_players(again=again)).status is status
