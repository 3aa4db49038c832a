from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.detached_graph import DetachedGraph
from nnaudit.checks.grad.gradient_reach import GradientsReachAll
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def audited(model: Callable[[], nn.Module], **parts: Any) -> tuple[Result, Result]:
    """Return GRAD101's and GRAD107's results."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
    target = Target(model, data, **{"loss": F.cross_entropy, **parts})
    audit = Audit(DirectLoop(target, torch.device("cpu"), seed=0))
    return run_check(GradientsReachAll, audit), run_check(DetachedGraph, audit)


class Two(nn.Module):
    """An encoder and a head, with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.encoder(x)))


class NoGrad(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.encoder(x)
        return self.head(h)


class Data(Two):
    def forward(self, x: Tensor) -> Tensor:
        first = self.encoder[0]
        return self.head(self.encoder[2](torch.tanh(x @ first.weight.data.T + first.bias.data)))


class Listed(nn.Module):
    def __init__(self, hold: Callable[[list[nn.Module]], Any] = list) -> None:
        super().__init__()
        self.layers = hold([nn.Linear(6, 6) for _ in range(3)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values() if isinstance(self.layers, dict) else self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


class LooseTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(3, requires_grad=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.scale


class Never(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pad(x, (0, 2)))


class OneKey(nn.Module):
    """A softmax over the dimension of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.value, self.head = nn.Linear(6, 1), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.score(x).softmax(-1) * self.value(x))


def dead(x: Tensor) -> Tensor:
    return F.relu(x - 100.0)


class BothZero(nn.Module):
    def __init__(self, a: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.full((6, 2), a)), nn.Parameter(torch.zeros(2, 3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + x @ self.a @ self.b


class TestCutGraphs:
    @pytest.mark.parametrize(
        "model",
        [
            lambda: Two(torch.Tensor.detach),
            lambda: Two(lambda h: torch.from_numpy(h.detach().numpy()).relu()),
            lambda: Two(lambda h: torch.tensor(h.tolist())),
            lambda: Two(lambda h: h.data * 2),
            NoGrad,
        ],
        ids=["detach", "numpy", "tensor", "data", "no_grad"],
    )
    def test_everything_before_the_cut_is_named(self, model: Callable[[], nn.Module]) -> None:
        reach, cut = audited(model)
        assert cut.status is Status.FAIL
        assert cut.module == "encoder"
        assert cut.location is not None
        assert cut.location.file == __file__
        assert reach.status is Status.FAIL
        assert "GRAD107" in GradientsReachAll.consequence_of

    def test_a_layer_by_its_data(self) -> None:
        _, cut = audited(Data)
        assert cut.status is Status.FAIL
        assert cut.module == "encoder.0"

    def test_a_rounding_without_straight_through(self) -> None:
        _, cut = audited(lambda: Two(lambda h: (8 * h).round()))
        assert cut.status is Status.FAIL
        assert "exactly zero" in cut.message

    def test_a_loss_without_any_graph(self) -> None:
        reach, cut = audited(
            Two, loss=lambda output, y: torch.tensor(F.cross_entropy(output, y).item())
        )
        assert (reach.status, cut.status) == (Status.FAIL, Status.FAIL)

    def test_a_detached_head_of_two(self) -> None:
        def step(model: nn.Module, batch: Any) -> Tensor:
            x, y = batch
            h = model.encoder(x)
            aside = F.mse_loss(model.aside(h), h.detach()).item()
            return F.cross_entropy(model.head(h), y) + aside

        def model() -> nn.Module:
            made = Two()
            made.aside = nn.Linear(8, 8)
            return made

        _, cut = audited(model, training_step=step, loss=None)
        assert cut.status is Status.FAIL
        assert cut.module == "aside"


class TestUnreached:
    @pytest.mark.parametrize("hold", [list, tuple, lambda layers: dict(enumerate(layers))])
    def test_layers_in_a_plain_container(self, hold: Callable[[list[nn.Module]], Any]) -> None:
        reach, _ = audited(lambda: Listed(hold))
        assert reach.status is Status.FAIL
        assert "layers" in reach.message
        assert "nn.Module" in reach.fix

    def test_a_tensor_that_is_no_parameter(self) -> None:
        reach, _ = audited(LooseTensor)
        assert reach.status is Status.FAIL
        assert "nn.Parameter" in reach.fix

    @pytest.mark.parametrize(
        ("model", "module"),
        [(lambda: Two(dead), "encoder"), (OneKey, "score"), (lambda: BothZero(0.0), "")],
    )
    def test_gradients_that_are_exactly_zero(
        self, model: Callable[[], nn.Module], module: str
    ) -> None:
        reach, cut = audited(model)
        assert reach.status is Status.FAIL
        assert reach.module.startswith(module)
        assert cut.status is Status.PASS

    def test_a_dead_output(self) -> None:
        reach, _ = audited(
            lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3), nn.Threshold(1e6, 0.0))
        )
        assert reach.status is Status.FAIL
        assert "No trained parameter" in reach.message

    def test_weights_that_are_all_zero(self) -> None:
        def zeros() -> nn.Module:
            net = nn.Sequential(
                nn.Linear(6, 8, bias=False),
                nn.Tanh(),
                nn.Linear(8, 8, bias=False),
                nn.Linear(8, 3, bias=False),
            )
            for parameter in net.parameters():
                nn.init.zeros_(parameter)
            return net

        reach, _ = audited(zeros)
        assert reach.status is Status.FAIL
        assert "all gradients are None or exactly zero" in reach.message


class TestNearMisses:
    def test_half_of_a_low_rank_update_at_zero(self) -> None:
        reach, cut = audited(lambda: BothZero(0.1))
        assert (reach.status, cut.status) == (Status.PASS, Status.PASS)

    def test_layers_in_a_module_list(self) -> None:
        reach, _ = audited(lambda: Listed(nn.ModuleList))
        assert reach.status is Status.PASS

    def test_layers_in_a_list_that_the_optimizer_knows(self) -> None:
        def optimizer(model: Listed) -> torch.optim.Optimizer:
            layers = [p for layer in model.layers for p in layer.parameters()]
            return torch.optim.SGD([*model.parameters(), *layers], lr=0.1)

        reach, _ = audited(Listed, optimizer=optimizer)
        assert reach.status is Status.PASS

    def test_a_frozen_encoder_under_no_grad(self) -> None:
        def model() -> nn.Module:
            made = NoGrad()
            made.encoder.requires_grad_(False)
            return made

        assert [result.status for result in audited(model)] == [Status.PASS, Status.PASS]

    def test_an_encoder_that_no_optimizer_holds(self) -> None:
        results = audited(NoGrad, optimizer=lambda m: torch.optim.SGD(m.head.parameters(), lr=0.1))
        assert [result.status for result in results] == [Status.PASS, Status.PASS]

    def test_a_module_that_is_never_called_is_a_warning(self) -> None:
        reach, cut = audited(Never)
        assert reach.status is Status.WARN
        assert "never called" in reach.message
        assert cut.status is Status.PASS

    def test_a_straight_through_rounding(self) -> None:
        results = audited(lambda: Two(lambda h: h + (h.round() - h).detach()))
        assert [result.status for result in results] == [Status.PASS, Status.PASS]

    def test_an_offset_whose_gradients_cancel(self) -> None:
        def hinge(score: Tensor, y: Tensor) -> Tensor:
            sign = torch.tensor([1.0, -1.0]).repeat(len(score) // 2).unsqueeze(1)
            return F.relu(1 - 0.1 * sign * score).mean() + score.square().sum().detach()

        # What moves the loss besides is on no graph: as another player's loss would be.
        for result in audited(lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1)), loss=hinge):
            assert result.status is Status.PASS

    def test_a_term_weighted_by_zero_for_now_is_no_failure(self) -> None:
        def step(model: nn.Module, batch: Any) -> Tensor:
            x, y = batch
            logits, aside = model(x)
            return F.cross_entropy(logits, y) + 0.0 * aside.square().mean()

        class WithAside(Two):
            def __init__(self) -> None:
                super().__init__()
                self.aside = nn.Linear(8, 1)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
                h = self.encoder(x)
                return self.head(h), self.aside(h)

        reach, cut = audited(WithAside, training_step=step, loss=None)
        assert (reach.status, cut.status) == (Status.PASS, Status.PASS)

    def test_a_healthy_program_takes_no_step_beyond_the_shared_ones(self) -> None:
        reach, cut = audited(Two)
        assert (reach.steps, cut.steps) == (5, 0)  # the first steps, of which the trace is made
