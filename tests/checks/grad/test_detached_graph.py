"""GRAD107 on its own; tests/checks/grad/test_gradient_reach.py asks it beside GRAD101."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.detached_graph import DetachedGraph
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.probes.drawn_samples import Draws
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


class Net(nn.Module):
    """Two layers; ``between`` is what happens to the features on the way."""

    def __init__(self, between) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x).relu()))


def audited(model: nn.Module) -> Result:
    torch.manual_seed(0)
    x = torch.randn(128, 8)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)
    target = Target(
        model=lambda: model,
        train_loader=loader,
        loss=nn.functional.cross_entropy,
        optimizer=lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1),
    )
    return run_check(DetachedGraph, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


@pytest.mark.parametrize(
    ("draw", "scored", "found"),
    [("sample", False, 1), ("rsample", False, 0), ("sample", True, 0)],
)
def test_a_sample_that_a_network_is_given(draw: str, *, scored: bool, found: int) -> None:
    encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)
    with Draws() as draws:
        normal = torch.distributions.Normal(encoder(torch.randn(3, 4)), 1.0)
        z = getattr(normal, draw)()
        decoder(z)
        if scored:  # the score function estimator
            normal.log_prob(z).sum().backward()
    assert [each.module for each in draws.found()] == ["Linear"] * found


@pytest.mark.parametrize(
    "cut",
    [
        lambda h: h.detach(),
        lambda h: h.data,
        lambda h: torch.tensor(h.tolist()),
        lambda h: torch.from_numpy(h.detach().numpy().copy()),
    ],
    ids=["detach", "data", "list", "numpy"],
)
def test_a_cut_graph_fails_and_names_what_is_cut_off(cut) -> None:
    result = audited(Net(cut))
    assert result.status is Status.FAIL
    assert "first" in result.message + result.module


def test_a_part_that_is_frozen_may_be_cut_off() -> None:
    model = Net(lambda h: h.detach())
    model.first.requires_grad_(False)
    assert audited(model).status is not Status.FAIL


@pytest.mark.parametrize(
    "whole",
    [lambda h: h, lambda h: h + (h.round() - h).detach(), lambda h: h * h.detach().sigmoid()],
)
def test_a_path_that_remains_is_enough(whole) -> None:
    assert audited(Net(whole)).status is Status.PASS


class Trunk(nn.Module):
    """A trunk whose features a head reads without a gradient; the optimizer holds both."""

    def __init__(self, *, loaded: bool = False, evaluated: bool = False, detach: bool = True):
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 3)
        self.evaluated, self.detach = evaluated, detach
        if loaded:
            generator = torch.Generator().manual_seed(5)
            weights = {n: torch.randn(p.shape, generator=generator) / 3
                       for n, p in self.trunk.named_parameters()}  # fmt: skip
            self.trunk.load_state_dict(weights)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        if self.evaluated:
            self.trunk.eval()
        return self

    def forward(self, x):
        if self.detach:
            return self.head(self.trunk(x).detach())
        with torch.no_grad():
            features = self.trunk(x)
        return self.head(features)


def trained_whole(model, **parts) -> Result:
    torch.manual_seed(0)
    x = torch.randn(128, 8)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32, shuffle=True)
    target = Target(
        model=model,
        train_loader=loader,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1),
        **{"loss": nn.functional.cross_entropy, **parts},
    )
    return run_check(DetachedGraph, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("sign", ["loaded", "evaluated"])
def test_a_feature_extractor_that_the_optimizer_holds_is_a_warning(sign, detach) -> None:
    result = trained_whole(lambda: Trunk(detach=detach, **{sign: True}))
    assert result.status is Status.WARN
    assert sign.removesuffix("uated") in result.message
    assert "model.trunk.requires_grad_(False)" in result.fix


@pytest.mark.parametrize("detach", [True, False])
def test_random_features_that_are_to_be_trained_are_a_failure(detach) -> None:
    assert trained_whole(lambda: Trunk(detach=detach)).status is Status.FAIL


def test_a_target_network_that_the_optimizer_holds_is_a_warning() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.online, self.target = nn.Linear(8, 3), nn.Linear(8, 3)
            self.target.load_state_dict(self.online.state_dict())

        def forward(self, x):
            return self.online(x), self.target(x).detach()

    def td(output, y):
        values, future = output
        return nn.functional.mse_loss(values, 0.9 * future + 1)

    result = trained_whole(Agent, loss=td)
    assert result.status is Status.WARN
    assert "target network" in result.message


def test_layers_of_a_list_that_begin_as_copies_are_no_target_networks() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.layers, self.head = body.layers, nn.Linear(8, 3)

        def forward(self, x):
            h = self.layers[0](x[:, None]).detach()
            return self.head(self.layers[2](self.layers[1](h))[:, 0])

    assert trained_whole(Cut).status is Status.FAIL


def test_dropout_does_not_hide_a_cut() -> None:
    assert audited(Net(lambda h: nn.functional.dropout(h, 0.5).detach())).status is Status.FAIL


class Scaled(nn.Module):
    """A number of its own, used as a plain number or as it is."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.tensor(2.0)), nn.Linear(8, 3)
        self.plain = plain

    def forward(self, x):
        return self.layer(x) * (self.scale.item() if self.plain else self.scale)


def test_a_parameter_held_by_the_network_itself_that_enters_as_a_number_fails() -> None:
    result = audited(Scaled(plain=True))
    assert result.status is Status.FAIL
    assert result.module == "scale"
    assert audited(Scaled(plain=False)).status is Status.PASS


class Unrolling(nn.Module):
    """Reads a row of 8 numbers one after the other; ``between`` is done to the state."""

    def __init__(self, cell: type[nn.Module], between) -> None:
        super().__init__()
        self.cell, self.out = cell(1, 12), nn.Linear(12, 3)
        self.between = between

    def forward(self, x):
        state, seen = None, []
        for t in range(8):
            state = self.cell(x[:, t : t + 1], state)
            seen.append(state[0] if isinstance(state, tuple) else state)
            state = self.between(state, t)
        return self.out(torch.stack(seen).mean(0))


def detached(state, t):
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_a_state_that_is_detached_between_steps_is_a_warning(cell) -> None:
    result = audited(Unrolling(cell, detached))
    assert result.status is Status.WARN
    assert result.module == "cell"
    assert "7 of them" in result.message


@pytest.mark.parametrize(
    "between",
    [
        lambda state, t: state,
        lambda state, t: detached(state, t) if t == 3 else state,  # halves, backpropagated at once
        lambda state, t: torch.zeros_like(state),
        lambda state, t: state.detach() + 1,
    ],
    ids=["kept", "halves", "begun anew", "another state"],
)
def test_other_states_pass(between) -> None:
    assert audited(Unrolling(nn.GRUCell, between)).status is Status.PASS


def test_a_backward_pass_after_every_step_is_truncated_backpropagation() -> None:
    model = Unrolling(nn.GRUCell, detached)

    def step(model, batch, optimizer):
        x, y = batch
        state, total = None, 0.0
        optimizer.zero_grad()
        for t in range(8):
            state = model.cell(x[:, t : t + 1], state)
            loss = nn.functional.cross_entropy(model.out(state), y)
            loss.backward()
            total, state = total + loss.detach(), state.detach()
        optimizer.step()
        return total

    x = torch.randn(64, 8)
    target = Target(
        model=lambda: model,
        train_loader=DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32),
        training_step=step,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1),
    )
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    assert run_check(DetachedGraph, Audit(loop)).status is Status.PASS
