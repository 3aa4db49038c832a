"""STEP102: gradients that are never zeroed, or zeroed before they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from author import AuthorLoop, ask, loss_of, plain, target
from torch import Tensor, nn

from nnaudit.checks.step.gradient_reset import GradientReset
from nnaudit.report import Status


def no_zero_grad(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = loss_of(loop, batch)
    loss.backward()
    loop.optimizers[0].step()
    return loss


def no_zero_grad_but_clipped(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = loss_of(loop, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
    loop.optimizers[0].step()
    return loss


def zeroes_the_head_only(loop: AuthorLoop, batch: Any) -> Tensor:
    loop.model[3].zero_grad()
    return no_zero_grad(loop, batch)


def zeroes_in_between(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = loss_of(loop, batch)
    loss.backward()
    loop.optimizers[0].zero_grad()
    loop.optimizers[0].step()
    return loss


def zeroes_in_between_in_place(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = loss_of(loop, batch)
    loss.backward()
    loop.model.zero_grad(set_to_none=False)
    loop.optimizers[0].step()
    return loss


def steps_before_backward(loop: AuthorLoop, batch: Any) -> Tensor:
    loop.optimizers[0].zero_grad()
    loss = loss_of(loop, batch)
    loop.optimizers[0].step()
    loss.backward()
    return loss


@pytest.mark.parametrize("body", [no_zero_grad, no_zero_grad_but_clipped, zeroes_the_head_only])
def test_gradients_that_are_summed_up_fail(body: Callable[..., Tensor]) -> None:
    result = ask(GradientReset, target(), body)
    assert result.status is Status.FAIL
    assert "zero_grad is not called" in result.message
    assert result.location is not None and result.location.file == __file__


def test_only_the_gradients_that_are_kept_are_named() -> None:
    result = ask(GradientReset, target(), zeroes_the_head_only)
    assert "2 of 4 gradients" in result.message
    assert result.module == "0"


@pytest.mark.parametrize(
    "body", [zeroes_in_between, zeroes_in_between_in_place, steps_before_backward]
)
def test_gradients_zeroed_before_the_step_fail(body: Callable[..., Tensor]) -> None:
    result = ask(GradientReset, target(), body)
    assert result.status is Status.FAIL
    assert "zeroed in between" in result.message


def test_adam_without_zero_grad_fails() -> None:
    adam = target(optimizer=lambda m: torch.optim.AdamW(m.parameters(), 1e-3))
    assert ask(GradientReset, adam, no_zero_grad).status is Status.FAIL


def zeroes_after(loop: AuthorLoop, batch: Any) -> Tensor:
    loss = loss_of(loop, batch)
    loss.backward()
    loop.optimizers[0].step()
    loop.model.zero_grad(set_to_none=False)
    return loss


def zeroes_by_hand(loop: AuthorLoop, batch: Any) -> Tensor:
    for parameter in loop.model.parameters():
        parameter.grad = None
    return no_zero_grad(loop, batch)


def accumulates(loop: AuthorLoop, batch: Any) -> Tensor:
    for _ in range(4):
        loss = loss_of(loop, batch) / 4
        loss.backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    loop.optimizers[0].step()
    loop.optimizers[0].zero_grad()
    return loss * 4


def gradients_by_autograd_grad(loop: AuthorLoop, batch: Any) -> Tensor:
    parameters = list(loop.model.parameters())
    loss = loss_of(loop, batch)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    loop.optimizers[0].step()
    return loss


def noisy_inputs(loop: AuthorLoop, batch: Any) -> Tensor:
    x, y = batch
    return plain(loop, (x + 0.3 * torch.randn_like(x), y))


@pytest.mark.parametrize(
    "body",
    [plain, zeroes_after, zeroes_by_hand, accumulates, gradients_by_autograd_grad, noisy_inputs],
)
def test_loops_that_zero_in_any_way_pass(body: Callable[..., Tensor]) -> None:
    assert ask(GradientReset, target(), body).status is Status.PASS


def test_a_closure_passes_and_one_without_zero_grad_fails() -> None:
    lbfgs = target(optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=3))

    def body(zeroes: bool) -> Callable[[AuthorLoop, Any], Tensor]:
        def run(loop: AuthorLoop, batch: Any) -> Tensor:
            def closure() -> Tensor:
                if zeroes:
                    loop.optimizers[0].zero_grad()
                loss = loss_of(loop, batch)
                loss.backward()
                return loss

            return torch.as_tensor(loop.optimizers[0].step(closure))

        return run

    assert ask(GradientReset, lbfgs, body(True)).status is Status.PASS
    assert ask(GradientReset, lbfgs, body(False)).status is Status.FAIL


class Pair(nn.Module):
    """A generator and a discriminator of 12 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12))
        self.d = nn.Sequential(nn.Linear(12, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(x)


def adversarial(zeroes_d: bool) -> Callable[[AuthorLoop, Any], Tensor]:
    def run(loop: AuthorLoop, batch: Any) -> Tensor:
        (x, _), model = batch, loop.model
        d, g = loop.optimizers
        ones, zeros = torch.ones(len(x), 1), torch.zeros(len(x), 1)
        if zeroes_d:
            d.zero_grad()
        fake = model.g(torch.randn(len(x), 4))
        F.binary_cross_entropy_with_logits(model.d(x), ones).backward()
        loss = F.binary_cross_entropy_with_logits(model.d(fake.detach()), zeros)
        loss.backward()
        d.step()
        g.zero_grad()
        F.binary_cross_entropy_with_logits(model.d(fake), ones).backward()
        g.step()
        return loss

    return run


def gan() -> Any:
    return target(
        model=Pair,
        optimizer=lambda m: [
            torch.optim.Adam(m.d.parameters(), 1e-3),
            torch.optim.Adam(m.g.parameters(), 1e-3),
        ],
    )


def test_two_players_that_zero_before_their_own_turn_pass() -> None:
    assert ask(GradientReset, gan(), adversarial(True)).status is Status.PASS


def test_a_discriminator_that_keeps_the_generators_gradients_fails() -> None:
    result = ask(GradientReset, gan(), adversarial(False))
    assert result.status is Status.FAIL
    assert result.module.startswith("d.")


def test_module_form_passes() -> None:
    assert ask(GradientReset, target()).status is Status.PASS


def test_two_optimizers_over_the_same_parameters_pass() -> None:
    both = target(
        optimizer=lambda m: [
            torch.optim.SGD(m.parameters(), 0.01),
            torch.optim.Adam(m.parameters(), 1e-3),
        ]
    )
    assert ask(GradientReset, both).status is Status.PASS


def test_an_amp_loop_with_a_scaler_passes() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        loop.optimizers[0].zero_grad()
        loss = loss_of(loop, batch)
        scaler.scale(loss).backward()
        scaler.step(loop.optimizers[0])
        scaler.update()
        return loss

    assert ask(GradientReset, target(), body).status is Status.PASS


def closures(where: str) -> Callable[[AuthorLoop, Any], Tensor]:
    """A loop with a closure, which calls zero_grad inside it, outside, or backward twice in it."""

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        optimizer = loop.optimizers[0]
        if where == "outside":
            optimizer.zero_grad()

        def closure() -> Tensor:
            if where != "outside":
                optimizer.zero_grad()
            loss = loss_of(loop, batch)
            loss.backward()
            if where == "accumulates":
                loss_of(loop, batch).backward()
            return loss

        optimizer.step(closure)
        return loss_of(loop, batch)

    return body


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_a_closure_that_is_zeroed_from_outside_fails(search: str | None) -> None:
    lbfgs = target(
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), 0.1, 4, line_search_fn=search)
    )
    result = ask(GradientReset, lbfgs, closures("outside"))
    assert result.status is Status.FAIL
    assert "closure" in result.message


@pytest.mark.parametrize(
    ("where", "make"),
    [
        ("inside", torch.optim.LBFGS),
        ("accumulates", torch.optim.LBFGS),
        ("outside", torch.optim.SGD),  # calls it once
    ],
)
def test_a_closure_that_adds_to_nothing_old_passes(where: str, make: Any) -> None:
    what = target(optimizer=lambda m: make(m.parameters(), lr=0.1))
    assert ask(GradientReset, what, closures(where)).status is Status.PASS


def sharpness_aware(*, zeroes: bool, embeddings: bool = False) -> Callable[..., Tensor]:
    """A step by the gradient at moved weights; of one layer's alone, as adversarial training."""

    def body(loop: AuthorLoop, batch: Any) -> Tensor:
        (optimizer,) = loop.optimizers
        optimizer.zero_grad()
        loss = loss_of(loop, batch)
        loss.backward()
        moved = loop.model[0].parameters() if embeddings else loop.model.parameters()
        kept = [(p, p.detach().clone()) for p in moved]
        for p, _ in kept:
            assert p.grad is not None
            p.data.add_(p.grad, alpha=0.1)
        if zeroes:
            optimizer.zero_grad()
        loss_of(loop, batch).backward()
        for p, old in kept:
            p.data = old
        optimizer.step()
        return loss

    return body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (sharpness_aware(zeroes=False), Status.WARN),
        (sharpness_aware(zeroes=True), Status.PASS),
        (sharpness_aware(zeroes=False, embeddings=True), Status.PASS),  # it wants the sum
    ],
)
def test_gradients_of_two_points(body: Callable[..., Tensor], status: Status) -> None:
    result = ask(GradientReset, target(), body)
    assert result.status is status, result.message
