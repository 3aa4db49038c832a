"""MODE105: what a checkpoint does not bring back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnaudit.checks.mode.checkpoint_round_trip import CheckpointRoundTrip
from nnaudit.report import Status


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 5)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(torch.relu(self.a(x))))


class PlainConstant(Net):
    """A random projection kept as a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = torch.randn(24, 24) / 5

    def between(self, h: Tensor) -> Tensor:
        return h @ self.mixing


class TransientBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mixing", torch.randn(24, 24) / 5, persistent=False)

    def between(self, h: Tensor) -> Tensor:
        return h @ self.mixing


class LayersInAList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(24, 24), nn.Linear(24, 24)]

    def between(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = torch.relu(layer(h))
        return h


class OwnAverage(Net):
    """Centres by a running average that is a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.center = torch.zeros(24)

    def between(self, h: Tensor) -> Tensor:
        if self.training:
            self.center = 0.9 * self.center + 0.1 * h.detach().mean(0)
        return h - self.center


class InitialisedByData(Net):
    """Scales by the first batch, and remembers that it did in a plain flag."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(24))
        self.initialised = False

    def between(self, h: Tensor) -> Tensor:
        if not self.initialised:
            with torch.no_grad():
                self.scale.copy_(1 / (h.std(0) + 0.1))
            self.initialised = True
        return h * self.scale


class Forgets(Net):
    """Leaves its first layer out of the checkpoint."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {k: v for k, v in state.items() if not k.startswith("a.")}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (PlainConstant, "mixing"),
        (TransientBuffer, "mixing"),
        (LayersInAList, "layers"),
        (OwnAverage, "center"),
        (Forgets, "a.weight"),
    ],
)
def test_what_is_not_saved_fails_and_is_named(build: Any, name: str, ask) -> None:
    result = ask(CheckpointRoundTrip, build)
    assert result.status is Status.FAIL
    assert name in result.message


def test_a_flag_that_is_not_saved_is_seen(ask) -> None:
    result = ask(CheckpointRoundTrip, InitialisedByData)
    assert result.status in (Status.FAIL, Status.WARN)
    assert "initialised" in result.message


class GrowsInForward(Net):
    def between(self, h: Tensor) -> Tensor:
        if not hasattr(self, "extra"):
            self.extra = nn.Linear(24, 24)
        return self.extra(h)


def test_a_layer_made_in_forward_does_not_load(ask) -> None:
    result = ask(CheckpointRoundTrip, GrowsInForward)
    assert result.status is Status.FAIL
    assert "does not load" in result.message


class Unsavable(Net):
    def get_extra_state(self) -> Any:
        return lambda: None

    def set_extra_state(self, state: Any) -> None:
        return None


def test_a_restart_that_is_led_by_another_network_is_not_judged(ask) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Net()

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x)  # type: ignore[no-any-return]

    builds = iter([Net()])
    result = ask(CheckpointRoundTrip, lambda: next(builds, None) or Around())
    assert result.status is Status.INCONCLUSIVE
    assert "different networks" in result.message


def test_a_state_that_cannot_be_written_fails(ask) -> None:
    assert ask(CheckpointRoundTrip, Unsavable).status is Status.FAIL


class OwnMomentum(torch.optim.SGD):
    """Keeps its momentum where state_dict does not look."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.buffers: dict[Tensor, Tensor] = {}

    def step(self, closure: object = None) -> None:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                buffer = self.buffers.get(parameter, torch.zeros_like(parameter))
                self.buffers[parameter] = 0.9 * buffer + parameter.grad
                parameter.sub_(self.param_groups[0]["lr"] * self.buffers[parameter])


class Recast(torch.optim.Adam):
    """Loses its second moments on the way."""

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict(state)
        for entries in self.state.values():
            entries["exp_avg_sq"].zero_()


@pytest.mark.parametrize("optimizer", [OwnMomentum, Recast])
def test_an_optimizer_that_forgets_fails(optimizer: Any, ask) -> None:
    result = ask(CheckpointRoundTrip, Net, optimizer=lambda m: optimizer(m.parameters(), 1e-2))
    assert result.status is Status.FAIL
    assert "restored optimizer" in result.message


class Stateful(nn.Module):
    """Carries its hidden state from batch to batch: a resumed run starts without it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 16, batch_first=True), nn.Linear(16, 5)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        state = self.state if self.state is not None and self.state.shape[1] == len(x) else None
        out, state = self.gru(x.reshape(len(x), 4, 3), state)
        self.state = state.detach()
        return self.head(out[:, -1])


class Positions(Net):
    """A constant that is the same whatever the seed need not be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 24), persistent=False)
        self.names = ["a", "b"]
        self.calls = 0

    def between(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h + self.table


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mid = nn.Linear(12, 24), nn.Linear(24, 24)
        self.again = self.mid
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(torch.relu(self.mid(torch.relu(self.encode(x))))))


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "hidden state": Stateful,
    "positions": Positions,
    "tied": Tied,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(24), nn.ReLU(), nn.LazyLinear(5)),
    "norms and dropout": lambda: nn.Sequential(
        nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Dropout(0.3), nn.ReLU(), nn.Linear(24, 5)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(12, 24)), nn.ReLU(), nn.Linear(24, 5)
    ),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(12, 24)), nn.ReLU(), nn.Linear(24, 5)
    ),
}


@pytest.mark.parametrize("build", HEALTHY.values(), ids=HEALTHY)
def test_networks_that_come_back_pass(build: Callable[[], nn.Module], ask) -> None:
    result = ask(CheckpointRoundTrip, build)
    assert result.status is Status.PASS, result.message


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, nesterov=True),
        lambda m: torch.optim.AdamW(m.parameters(), 1e-3, amsgrad=True),
        lambda m: torch.optim.RMSprop(m.parameters(), 1e-3, momentum=0.9),
        lambda m: torch.optim.LBFGS(m.parameters()),
        lambda m: [
            torch.optim.Adam(m.a.parameters(), 1e-3),
            torch.optim.SGD(m.b.parameters(), 0.1),
        ],
    ],
    ids=["sgd", "adamw", "rmsprop", "lbfgs", "two"],
)
def test_optimizers_that_come_back_pass(optimizer: Any, ask) -> None:
    result = ask(CheckpointRoundTrip, Net, optimizer=optimizer)
    assert result.status is Status.PASS, result.message


def test_a_teacher_outside_of_the_model_is_not_judged(ask) -> None:
    teachers: dict[int, nn.Module] = {}

    def training_step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        teacher = teachers.setdefault(id(model), Net())
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
            goal = teacher(x).softmax(1)
        return F.cross_entropy(model(x), goal) + F.cross_entropy(model(x), y)

    result = ask(CheckpointRoundTrip, Net, training_step=training_step, loss=None)
    assert result.status is Status.INCONCLUSIVE


def test_a_model_handed_over_as_an_object_is_skipped(ask) -> None:
    assert ask(CheckpointRoundTrip, Net()).status is Status.SKIP


class Thawing(Net):
    """Frozen but for its last layer, until it has been called in two training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        if self.steps > 2:
            self.a.requires_grad_(True)
        return super().forward(x)


def test_what_was_thawed_by_then_is_thawed_in_the_restored_run_too(ask) -> None:
    optimizer = lambda m: torch.optim.SGD(m.parameters(), 0.1)  # noqa: E731
    assert ask(CheckpointRoundTrip, Thawing, optimizer=optimizer).status is Status.PASS
