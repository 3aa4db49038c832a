"""STEP106: gradients, steps and regions lost to low precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from author import AuthorLoop, ask, loss_of, plain, target
from torch import Tensor, nn

from nnaudit.checks.step.mixed_precision import _WATCH, MixedPrecision
from nnaudit.report import Status
from nnaudit.stats import binomial_sf


def deep() -> nn.Module:
    layers = [layer for _ in range(3) for layer in (nn.Linear(24, 24), nn.Tanh())]
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), *layers, nn.Linear(24, 5))


def casting(
    dtype: torch.dtype, *, scaler: Any = None, weight: float = 1.0
) -> Callable[[AuthorLoop, Any], Tensor]:
    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        x, y = batch
        loop.optimizers[0].zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = weight * F.cross_entropy(loop.model(x), y)
        if scaler is None:
            loss.backward()
            loop.optimizers[0].step()
        else:
            scaler.scale(loss).backward()
            scaler.step(loop.optimizers[0])
            scaler.update()
        return loss

    return body


def around_the_loss(loop: AuthorLoop, batch: Any) -> Tensor:
    x, y = batch
    loop.optimizers[0].zero_grad()
    output = loop.model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(output, y)
    loss.backward()
    loop.optimizers[0].step()
    return loss


def test_float16_without_a_scaler_that_loses_gradients_fails() -> None:
    result = ask(MixedPrecision, target(model=deep), casting(torch.float16, weight=1e-5))
    assert result.status is Status.FAIL
    assert "too small" in result.message


def test_float16_without_a_scaler_warns() -> None:
    assert ask(MixedPrecision, target(model=deep), casting(torch.float16)).status is Status.WARN


def test_a_scaler_that_goes_on_skipping_fails() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    turns = iter(range(10**6))

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        loss = loss_of(loop, batch)
        scaler.scale(loss * float("inf") if next(turns) % 3 == 0 else loss).backward()
        scaler.step(loop.optimizers[0])
        scaler.update()
        return loss

    result = ask(MixedPrecision, target(), body)
    assert result.status is Status.FAIL
    assert "skipped" in result.message


def test_null_rejection_rate_and_power_of_counting_skipped_steps() -> None:
    """More than 20 % of 40 steps, twice: by chance of a healthy run, and of one that overflows."""
    alarm = _WATCH // 5 + 1
    assert binomial_sf(alarm, _WATCH, 1 / 2000) < 1e-20
    assert binomial_sf(alarm, _WATCH, 0.4) ** 2 > 0.98


def test_autocast_around_the_loss_only_warns() -> None:
    result = ask(MixedPrecision, target(), around_the_loss)
    assert result.status is Status.WARN
    assert "none of 2 layers" in result.message


def test_a_scaler_that_settles_passes() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    body = casting(torch.float16, scaler=scaler)
    assert ask(MixedPrecision, target(model=deep), body).status is Status.PASS


def test_bfloat16_passes_with_and_without_autocast() -> None:
    assert ask(MixedPrecision, target(model=deep), casting(torch.bfloat16)).status is Status.PASS

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        x, y = batch
        return plain(loop, (x.bfloat16(), y))

    low = target(model=lambda: deep().bfloat16())
    assert ask(MixedPrecision, low, body).status is Status.PASS


def test_a_frozen_float16_encoder_is_no_training_in_float16() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(12, 24).half().requires_grad_(False)
            self.head = nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                features = self.encoder(x.half())
            return self.head(features.float())

    frozen = target(model=Frozen, optimizer=lambda m: torch.optim.SGD(m.head.parameters(), 0.1))
    assert ask(MixedPrecision, frozen).status is Status.SKIP


@pytest.mark.parametrize("enabled", [True, False])
def test_full_precision_is_skipped(enabled: bool) -> None:
    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return plain(loop, batch)

    assert ask(MixedPrecision, target(), body if enabled else None).status is Status.SKIP


def scaling(
    *, main: bool = True, steps: str = "scaler", clip: float = 0.0
) -> Callable[[AuthorLoop, Any], Tensor]:
    """A loop of two losses, one of which is always scaled."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        optimizer = loop.optimizers[0]
        optimizer.zero_grad()
        loss = loss_of(loop, batch)
        penalty = 1e-3 * loop.model(batch[0]).square().mean()
        scaler.scale(penalty).backward()
        (scaler.scale(loss) / 2.0 if main else loss).backward()
        if steps == "scaler":
            scaler.step(optimizer)
            scaler.update()
        else:
            if clip:
                nn.utils.clip_grad_norm_(loop.model.parameters(), clip)
            if steps == "by hand":
                for parameter in loop.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad /= scaler.get_scale()
            optimizer.step()
        return loss

    return body


def test_a_loss_that_the_scaler_has_not_multiplied_fails() -> None:
    result = ask(MixedPrecision, target(), scaling(main=False))
    assert result.status is Status.FAIL
    assert "256 times too small" in result.message


def test_gradients_that_nothing_divides_fail() -> None:
    result = ask(MixedPrecision, target(), scaling(steps="plain"))
    assert result.status is Status.FAIL
    assert "256 times too large" in result.message


@pytest.mark.parametrize(("steps", "fails"), [("plain", True), ("by hand", False)])
def test_a_clip_of_the_multiplied_gradient_does_not_divide_it(steps: str, fails: bool) -> None:
    result = ask(MixedPrecision, target(), scaling(steps=steps, clip=0.5))
    assert (result.status is Status.FAIL) is fails, result.message


@pytest.mark.parametrize("steps", ["scaler", "by hand"])
def test_two_scaled_losses_one_of_them_halved_pass(steps: str) -> None:
    result = ask(MixedPrecision, target(), scaling(steps=steps))
    assert result.status in (Status.PASS, Status.SKIP)


def test_a_raw_loss_of_another_optimizers_parameters_is_none_of_the_scalers() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    other = nn.Parameter(torch.ones(3))
    theirs = torch.optim.SGD([other], lr=0.1)

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        loss = loss_of(loop, batch)
        scaler.scale(loss).backward()
        other.square().sum().backward()
        theirs.step()
        scaler.step(loop.optimizers[0])
        scaler.update()
        return loss

    assert ask(MixedPrecision, target(), body).status is Status.PASS
