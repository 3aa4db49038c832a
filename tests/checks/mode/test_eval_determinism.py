"""MODE102: outputs in eval mode that depend on chance."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.base import Check
from nnaudit.checks.mode.checkpoint_round_trip import CheckpointRoundTrip
from nnaudit.checks.mode.eval_determinism import EvalDeterminism
from nnaudit.checks.mode.eval_purity import EvalPurity
from nnaudit.report import Result, Status


class Net(nn.Module):
    """Two layers, and between them what a test puts there."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 5)
        self.norm, self.drop = nn.BatchNorm1d(24), nn.Dropout(0.2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, torch.relu(self.a(x))))


def functional(net: nn.Module, h: Tensor) -> Tensor:
    return F.dropout(h, 0.5)


def functional_by_position(net: nn.Module, h: Tensor) -> Tensor:
    return F.dropout(h, 0.5, not net.training or net.training)


def attention(net: nn.Module, h: Tensor) -> Tensor:
    q = h.reshape(len(h), 1, 4, 6)
    return F.scaled_dot_product_attention(q, q, q, dropout_p=0.2).reshape(len(h), 24)


@pytest.mark.parametrize("between", [functional, functional_by_position, attention])
def test_dropout_that_ignores_the_mode_fails(between: Callable[..., Tensor], ask) -> None:
    result: Result = ask(EvalDeterminism, lambda: Net(between))
    assert result.status is Status.FAIL
    assert result.location is not None and result.location.file == __file__
    assert "training" in result.fix


def made_anew(net: nn.Module, h: Tensor) -> Tensor:
    return torch.relu(nn.Linear(24, 24)(h))


def dropout_made_anew(net: nn.Module, h: Tensor) -> Tensor:
    return nn.Dropout(0.5)(h)


HIDDEN = [nn.Dropout(0.5)]


def dropout_in_a_list(net: nn.Module, h: Tensor) -> Tensor:
    return HIDDEN[0](h)


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (made_anew, "every call creates a new Linear"),
        (dropout_made_anew, "a dropout module outside the model is active"),
        (dropout_in_a_list, "a dropout module outside the model is active"),
    ],
)
def test_layers_that_are_no_part_of_the_model_fail(
    between: Callable[..., Tensor], said: str, ask
) -> None:
    result: Result = ask(EvalDeterminism, lambda: Net(between))
    assert result.status is Status.FAIL
    assert said in result.message
    assert result.location is not None and result.location.file == __file__


class Late(Net):
    """Makes its middle layer at its first call, and drops it in every one, as it is told to."""

    def __init__(self) -> None:
        super().__init__(lambda net, h: F.dropout(net.late(h), 0.5, training=True))
        self.middle: nn.Module | None = None

    def late(self, h: Tensor) -> Tensor:
        if self.middle is None:
            self.middle = nn.Linear(24, 24)
        return self.middle(h)


def test_a_layer_made_at_the_first_call_only_is_no_such_fault(ask) -> None:
    assert ask(EvalDeterminism, Late).status is Status.WARN


def declared(net: nn.Module, h: Tensor) -> Tensor:
    return F.dropout(h, 0.5, training=True)


def reparametrised(net: nn.Module, h: Tensor) -> Tensor:
    return h + 0.1 * torch.randn_like(h)


class MonteCarlo(Net):
    """Keeps its dropout on, to sample predictions."""

    def __init__(self) -> None:
        super().__init__(lambda net, h: net.drop(h))

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.drop.train()
        return self


@pytest.mark.parametrize("build", [lambda: Net(declared), MonteCarlo])
def test_dropout_that_may_be_meant_warns(build: Callable[[], nn.Module], ask) -> None:
    assert ask(EvalDeterminism, build).status is Status.WARN


def test_a_model_that_samples_is_noted(ask) -> None:
    result: Result = ask(EvalDeterminism, lambda: Net(reparametrised))
    assert result.status is Status.NOTE
    assert "randn_like" in result.message and result.location is not None


class Teaching(Net):
    """Takes each input from the teacher by chance, unless it is told otherwise."""

    def __init__(self) -> None:
        super().__init__(guarded)

    def forward(self, x: Tensor, ratio: float = 0.5) -> Tensor:
        return super().forward(x) * (1.0 if random.random() < ratio else 0.5)


class Skipping(Net):
    """Leaves a layer out by chance, in eval mode too."""

    def __init__(self) -> None:
        super().__init__(lambda net, h: h * random.random())


def test_chance_that_the_caller_sets_is_a_note(ask) -> None:
    assert ask(EvalDeterminism, Teaching).status is Status.NOTE
    assert ask(EvalDeterminism, Skipping).status is Status.WARN


def handed_on(net: nn.Module, h: Tensor) -> Tensor:
    return F.dropout(h, 0.5, training=net.training)


def guarded(net: nn.Module, h: Tensor) -> Tensor:
    return h + torch.randn_like(h) if net.training else h


def attention_guarded(net: nn.Module, h: Tensor) -> Tensor:
    q = h.reshape(len(h), 1, 4, 6)
    p = 0.2 if net.training else 0.0
    return F.scaled_dot_product_attention(q, q, q, dropout_p=p).reshape(len(h), 24)


def random_and_unused(net: nn.Module, h: Tensor) -> Tensor:
    torch.rand(3)
    return h


class Recurrent(nn.Module):
    """Carries its state from batch to batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 16, 2, batch_first=True, dropout=0.3)
        self.head = nn.Linear(16, 5)
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        state = self.state if self.state and self.state[0].shape[1] == len(x) else None
        out, state = self.lstm(x.reshape(len(x), 4, 3), state)
        self.state = (state[0].detach(), state[1].detach())
        return self.head(out[:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, 0.2, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, None])[:, 0])


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "functional dropout": lambda: Net(handed_on),
    "noise in training": lambda: Net(guarded),
    "attention": lambda: Net(attention_guarded),
    "unused": lambda: Net(random_and_unused),
    "modules": lambda: Net(lambda net, h: net.drop(net.norm(h))),
    "encoder": Encoder,
}


@pytest.mark.parametrize("build", HEALTHY.values(), ids=HEALTHY)
def test_networks_that_mind_their_mode_pass(build: Callable[[], nn.Module], ask) -> None:
    assert ask(EvalDeterminism, build).status is Status.PASS


def crashing(net: nn.Module, h: Tensor) -> Tensor:
    return h if net.training else h + net.calibration


def refusing(net: nn.Module, h: Tensor) -> Tensor:
    assert net.training or len(h) == 1, "one at a time"
    return h


def test_a_crash_in_eval_mode_is_named(ask) -> None:
    result: Result = ask(EvalDeterminism, lambda: Net(crashing))
    assert result.status is Status.FAIL
    assert "AttributeError" in result.message and "calibration" in result.message
    assert result.location is not None
    assert result.location.line == crashing.__code__.co_firstlineno + 1


def test_what_eval_mode_refuses_by_an_assertion_is_no_failure(ask) -> None:
    result: Result = ask(EvalDeterminism, lambda: Net(refusing))
    assert result.status is Status.INCONCLUSIVE
    assert "one at a time" in result.message


@pytest.mark.parametrize("check", [EvalDeterminism, EvalPurity, CheckpointRoundTrip])
def test_a_network_without_a_forward_of_its_own_is_not_called(check: type[Check], ask) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Linear(12, 8), nn.Linear(8, 5)

    def step(model: nn.Module, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(model.head(model.encoder(batch[0]).relu()), batch[1])

    result: Result = ask(check, Parts, training_step=step, loss=None)
    assert result.status is Status.SKIP
    assert "one by one" in result.message


def test_a_state_carried_over_shuffled_batches_warns(ask) -> None:
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    held_out = DataLoader(TensorDataset(x, x[:, :5].argmax(1)), 32)
    result: Result = ask(EvalDeterminism, Recurrent, val_loader=held_out)
    assert result.status is Status.WARN
    assert "carries" in result.message
    assert ask(EvalDeterminism, Recurrent, val_loader=None).status is Status.NOTE


def test_a_state_carried_along_an_order_passes(ask) -> None:
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    in_order = DataLoader(TensorDataset(x, x[:, :5].argmax(1)), 32)
    assert ask(EvalDeterminism, Recurrent, train_loader=in_order).status is Status.PASS


class Cached(Net):
    """Makes something at its first call and keeps it."""

    def __init__(self) -> None:
        super().__init__(lambda net, h: h + self.offset(h))
        self.made: Tensor | None = None

    def offset(self, h: Tensor) -> Tensor:
        before, self.made = self.made, torch.ones(24) if self.made is None else self.made
        return torch.zeros(24) if before is None else before


def test_what_is_made_once_is_no_state(ask) -> None:
    assert ask(EvalDeterminism, Cached).status is Status.PASS
