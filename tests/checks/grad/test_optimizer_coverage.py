from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.optimizer_coverage import OptimizerCoverage
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status, Table
from nnaudit.targets.target import Target

LOADED = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)).state_dict()


class Net(nn.Module):
    def __init__(self, loaded: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        if loaded:
            self.body.load_state_dict(LOADED)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(6, 8), nn.Linear(8, 8)]
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


def audited(
    optimizer: Callable[[Any], Any] | None, model: Callable[[], nn.Module] | nn.Module = Net
) -> Result:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
    target = Target(model, data, loss=F.cross_entropy, optimizer=optimizer)
    return run_check(OptimizerCoverage, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


def head_replaced(model: Net) -> torch.optim.Optimizer:
    optimizer = sgd(model.parameters())
    model.head = nn.Linear(8, 3)
    return optimizer


class TestFaults:
    @pytest.mark.parametrize(
        ("optimizer", "module"),
        [
            (lambda model: sgd(model.body.parameters()), "head"),
            (lambda model: sgd(model.head.parameters()), "body.0"),
            (lambda model: sgd([model.body[0].weight, *model.head.parameters()]), "body.0"),
            (lambda model: sgd(p for n, p in model.named_parameters() if "bias" in n), "body.0"),
            (lambda model: sgd(Net().parameters()), "body.0"),
            (head_replaced, "head"),
            (
                lambda model: [sgd(model.body[0].parameters()), sgd(model.head.parameters())],
                "body.2",
            ),
        ],
    )
    def test_a_part_in_no_optimizer_fails_and_is_named(self, optimizer, module: str) -> None:
        result = audited(optimizer)
        assert result.status is Status.FAIL, result.message
        assert result.module == module
        assert module in result.message

    def test_parameters_the_model_no_longer_has_are_mentioned(self) -> None:
        assert "2 tensors that the model does not have" in audited(head_replaced).message

    def test_every_missing_parameter_is_listed(self) -> None:
        (table,) = audited(lambda model: sgd(model.head.parameters())).evidence
        assert isinstance(table, Table)
        assert [row[0] for row in table.rows] == [
            "body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias",
        ]  # fmt: skip

    def test_the_forgotten_head_of_a_loaded_body_fails(self) -> None:
        result = audited(lambda model: sgd(model.body.parameters()), lambda: Net(loaded=True))
        assert result.status is Status.FAIL

    def test_layers_in_a_list(self) -> None:
        result = audited(lambda model: sgd(model.parameters()), Listed)
        assert result.status is Status.FAIL
        assert "4 trainable tensors in layers" in result.message
        assert "ModuleList" in result.fix


class TestHealthy:
    def test_layers_in_a_list_that_the_optimizer_is_given(self) -> None:
        def both(model: Any) -> torch.optim.Optimizer:
            hidden = [p for layer in model.layers for p in layer.parameters()]
            return sgd([*model.parameters(), *hidden])

        result = audited(both, Listed)
        assert result.status in (Status.PASS, Status.NOTE), result.message

    @pytest.mark.parametrize(
        "optimizer",
        [
            lambda model: sgd(model.parameters()),
            lambda model: torch.optim.AdamW(
                [{"params": model.body.parameters()}, {"params": model.head.parameters(), "lr": 1}]
            ),
            lambda model: [sgd(model.body.parameters()), sgd(model.head.parameters())],
            lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2),
        ],
    )
    def test_all_in_some_optimizer_pass(self, optimizer) -> None:
        assert audited(optimizer).status is Status.PASS

    def test_a_frozen_body_passes(self) -> None:
        def frozen() -> nn.Module:
            model = Net(loaded=True)
            model.body.requires_grad_(False)
            return model

        assert audited(lambda model: sgd(model.head.parameters()), frozen).status is Status.PASS

    def test_a_body_under_no_grad_is_a_note(self) -> None:
        class Features(Net):
            def forward(self, x: Tensor) -> Tensor:
                with torch.no_grad():
                    features = self.body(x)
                return self.head(features)

        result = audited(lambda model: sgd(model.head.parameters()), Features)
        assert result.status is Status.NOTE
        assert "no gradient" in result.message

    def test_features_of_a_loaded_body_are_a_warning(self) -> None:
        result = audited(lambda model: sgd(model.head.parameters()), lambda: Net(loaded=True))
        assert result.status is Status.WARN
        assert "requires_grad_(False)" in result.fix

    def test_a_loss_that_learns_is_no_stranger_to_fail_for(self) -> None:
        temperature = nn.Parameter(torch.ones(()))
        result = audited(lambda model: sgd([*model.parameters(), temperature]))
        assert result.status is Status.NOTE

    def test_frozen_tensors_in_the_optimizer_are_a_note(self) -> None:
        def partly() -> nn.Module:
            model = Net()
            model.body[0].requires_grad_(False)
            return model

        result = audited(lambda model: sgd(model.parameters()), partly)
        assert result.status is Status.NOTE
        assert "2 frozen" in result.message

    def test_tied_weights_pass(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encode = nn.Linear(6, 6)
                self.decode = nn.Linear(6, 6)
                self.decode.weight = self.encode.weight

            def forward(self, x: Tensor) -> Tensor:
                return self.decode(self.encode(x))

        assert audited(lambda model: sgd(model.parameters()), Tied).status is Status.PASS

    def test_a_default_optimizer_is_not_judged(self) -> None:
        assert audited(None).status is Status.SKIP

    def test_weights_that_follow_master_copies_pass(self) -> None:
        def step(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
            masters = optimizer.param_groups[0]["params"]
            model.zero_grad()
            loss = F.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            for master, parameter in zip(masters, model.parameters(), strict=True):
                master.grad = parameter.grad.clone()
            optimizer.step()
            with torch.no_grad():
                for master, parameter in zip(masters, model.parameters(), strict=True):
                    parameter.copy_(master)
            return loss

        x = torch.randn(64, 6)
        target = Target(
            Net,
            DataLoader(TensorDataset(x, x[:, :2].argmax(1)), batch_size=16),
            training_step=step,
            optimizer=lambda m: sgd([p.detach().clone() for p in m.parameters()]),
        )
        result = run_check(OptimizerCoverage, Audit(DirectLoop(target, torch.device("cpu"), 0)))
        assert result.status is Status.NOTE


def written_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, masters: list[Any]) -> Any:
    """A step in which ``masters`` are stepped and copied to the parameters they stand for."""

    def step(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(batch[0].bfloat16()).float(), batch[1])
        loss.backward()
        for master, parameter in zip(masters, model.parameters(), strict=False):
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=False):
                parameter.copy_(master)
        return loss

    return step


class Normed(nn.Module):
    """Its gain begins at one, where a small update of bfloat16 is rounded away."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def low_precision(kept: int | None, rate: float = 0.02) -> Result:
    """Audit bfloat16 weights whose first ``kept`` parameters have masters in the optimizer."""
    model = Normed().bfloat16()
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()][:kept]
    optimizer = sgd(masters)
    optimizer.param_groups[0]["lr"] = rate
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    target = Target(
        model,
        DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16),
        training_step=written_by_hand(model, optimizer, masters),
        optimizer=optimizer,
    )
    return run_check(OptimizerCoverage, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def test_a_rounded_copy_that_stands_still_beside_others_of_its_master_copies_passes() -> None:
    result = low_precision(None)
    assert result.status is Status.NOTE, result.message


def test_a_layer_without_a_master_copy_beside_others_fails() -> None:
    result = low_precision(4)
    assert result.status is Status.FAIL
    assert result.module == "head"


THAWED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(128, 6)
loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=32)
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
model[0].requires_grad_(False)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
for epoch in range(5):
    if epoch == 1:
        model[0].requires_grad_(True)
        THEN
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


def test_layers_thawed_in_the_second_epoch_and_given_to_no_optimizer_fail(ask_script) -> None:
    result = ask_script(OptimizerCoverage, THAWED.replace("THEN", "pass"))
    assert result.status is Status.FAIL
    assert result.module == "0"
    assert "add_param_group" in result.fix


@pytest.mark.parametrize(
    "then",
    [
        "optimizer.add_param_group({'params': model[0].parameters()})",
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.01)",
    ],
)
def test_layers_thawed_and_given_to_an_optimizer_do_not_fail(then: str, ask_script) -> None:
    result = ask_script(OptimizerCoverage, THAWED.replace("THEN", then))
    assert result.status in (Status.PASS, Status.NOTE), result.message


PRETRAINED = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(64, 4)
first = nn.Linear(4, 3)
head = nn.Linear(3, 2)
optimizer = torch.optim.SGD([*first.parameters(), *head.parameters()], lr=0.1)
for _ in range(6):
    optimizer.zero_grad()
    head(first(x)).pow(2).mean().backward()
    optimizer.step()

model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
model[0].load_state_dict(first.state_dict())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(6):
    for a, b in DataLoader(TensorDataset(x, x[:, 0].long().clamp(0, 1)), batch_size=8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
"""


def test_a_network_that_an_earlier_training_left_is_not_missed(
    ask_script: Callable[[type[OptimizerCoverage], str], Result],
) -> None:
    assert ask_script(OptimizerCoverage, PRETRAINED).status is Status.PASS
