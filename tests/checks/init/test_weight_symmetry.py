from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.init.weight_symmetry import WeightSymmetry
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def audited(
    model: Callable[[], nn.Module], *, x: Tensor | None = None, classes: int = 3, lr: float = 0.05
) -> Result:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator) if x is None else x
    y = torch.arange(len(x)) % classes
    target = Target(
        model,
        DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True),
        loss=nn.functional.cross_entropy,
        optimizer=lambda m: torch.optim.SGD(
            [p for p in m.parameters() if p.requires_grad], lr=lr, momentum=0.9
        ),
    )
    return run_check(WeightSymmetry, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def mlp(*, dropout: float = 0.0, hidden: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, hidden), nn.Tanh(), nn.Dropout(dropout),
        nn.Linear(hidden, 12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip


def filled(model: nn.Module, *names: str, value: float = 0.1) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name in names or not names:
            nn.init.constant_(parameter, value)
    return model


def images() -> Tensor:
    return torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def pictures() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 3),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[..., None])[0][:, -1])


@pytest.mark.parametrize("value", [0.1, 1e-3])
def test_a_network_filled_with_a_constant_fails(value: float) -> None:
    result = audited(lambda: filled(mlp(), value=value))
    assert result.status is Status.FAIL
    assert result.module == "0"
    assert "16 of 16" in result.message
    assert "model[0].weight" in result.fix


def test_filters_filled_with_a_constant_fail() -> None:
    model = pictures()

    def made() -> nn.Module:
        return filled(model, "0.weight", "0.bias", "2.weight", "2.bias", "5.weight", value=0.02)

    assert audited(made, x=images()).status is Status.FAIL


def test_a_recurrent_layer_filled_with_a_constant_fails() -> None:
    assert audited(lambda: filled(Recurrent(), value=0.1)).status is Status.FAIL


def test_rows_that_repeat_one_random_row_fail() -> None:
    def model() -> nn.Module:
        made = mlp()
        with torch.no_grad():
            for layer in (made[0], made[3]):
                layer.weight.copy_(layer.weight[:1].clone().expand_as(layer.weight))
                layer.bias.zero_()
            made[3].weight.copy_(made[3].weight[:, :1].clone().expand_as(made[3].weight))
            made[5].weight.copy_(made[5].weight[:, :1].clone().expand_as(made[5].weight))
        return made

    assert audited(model).status is Status.FAIL


def test_a_constant_layer_that_random_ones_tell_apart_passes() -> None:
    result = audited(lambda: filled(mlp(), "0.weight", "0.bias"))
    assert result.status is Status.PASS
    assert "differ after 5 steps" in result.message


def test_dropout_tells_apart_what_is_constant() -> None:
    assert audited(lambda: filled(mlp(dropout=0.5), "0.weight", "3.weight")).status is Status.PASS


@pytest.mark.parametrize("names", [("5.weight", "5.bias"), ("0.bias", "3.bias", "5.bias")])
def test_constant_output_layers_and_biases_are_well(names: tuple[str, ...]) -> None:
    result = audited(lambda: filled(mlp(), *names, value=0.0))
    assert (result.status, result.steps) == (Status.PASS, 5)


def test_classes_that_never_occur_have_equal_rows_in_the_output_layer() -> None:
    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 40))
        nn.init.zeros_(made[2].weight)
        nn.init.zeros_(made[2].bias)
        return made

    assert audited(model).status is Status.PASS


def test_default_initialisation_needs_no_further_step() -> None:
    assert audited(mlp).status is Status.PASS
    assert audited(Recurrent).status is Status.PASS
    assert audited(pictures, x=images()).status is Status.PASS


def test_equal_depthwise_filters_are_no_copies() -> None:
    def model() -> nn.Module:
        made = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1),
            nn.Flatten(), nn.Linear(128, 3),
        )  # fmt: skip
        nn.init.constant_(made[2].weight, 1 / 9)
        return made

    assert audited(model, x=images()).status is Status.PASS


def test_a_low_rank_adapter_that_begins_at_zero_passes() -> None:
    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(8, 16).requires_grad_(False)
            self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 16, bias=False)
            nn.init.zeros_(self.up.weight)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.base(x) + self.up(self.down(x))).relu())

    assert audited(Lora).status is Status.PASS
