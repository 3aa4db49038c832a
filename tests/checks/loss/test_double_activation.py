from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.loss.double_activation import DoubleActivation, floor_of
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target

CLASSES = 5


def net(last: nn.Module | None = None, outputs: int = CLASSES) -> Callable[[], nn.Module]:
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs)]
    return lambda: nn.Sequential(*layers, *([last] if last is not None else []))


def loader(y: Tensor | None = None, rows: int = 640, batch: int = 64) -> DataLoader:
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :CLASSES].argmax(1) if y is None else y
    return DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)


def audited(
    model: Callable[[], nn.Module],
    loss: Callable[..., Tensor],
    train: DataLoader | None = None,
    **parts: Any,
) -> Result:
    target = Target(model, train_loader=loader() if train is None else train, loss=loss, **parts)
    return run_check(DoubleActivation, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, CLASSES).float()


def ctc(log_probs: Tensor) -> Tensor:
    """CTC of 64 rows as 8 sequences of 8 steps each, time first, with one symbol per sequence."""
    ones = torch.ones(8, dtype=torch.long)
    return F.ctc_loss(log_probs.reshape(8, 8, CLASSES), ones[:, None], 8 * ones, ones)


def dice(given: Tensor, target: Tensor, dim: int | None = None) -> Tensor:
    parts = ((given * target).sum(dim), given.sum(dim) + target.sum(dim))
    return ((2 * parts[0] + 1) / (parts[1] + 1)).mean()


def two_labels(y: Tensor) -> Tensor:
    return one_hot(y) + one_hot((y + 1) % CLASSES)


class Opaque(torch.autograd.Function):
    """A softmax that autograd knows by another name."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.softmax(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


FAULTS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "softmax before cross_entropy": (net(nn.Softmax(1)), F.cross_entropy),
    "softmax in the loss": (net(), lambda out, y: F.cross_entropy(out.softmax(1), y)),
    "softmax over the batch": (net(nn.Softmax(0)), F.cross_entropy),
    "softmax autograd cannot see": (net(), lambda out, y: F.cross_entropy(Opaque.apply(out), y)),
    "mean of two softmaxes": (
        net(),
        lambda out, y: F.cross_entropy((out.softmax(1) + (2 * out).softmax(1)) / 2, y),
    ),
    "sigmoid before cross_entropy": (net(nn.Sigmoid()), F.cross_entropy),
    "log_softmax over the batch": (net(nn.LogSoftmax(0)), F.cross_entropy),
    "softmax, then log_softmax": (
        net(nn.Softmax(1)),
        lambda out, y: F.nll_loss(out.log_softmax(1), y),
    ),
    "logits to nll_loss": (net(), F.nll_loss),
    "probabilities to nll_loss": (net(nn.Softmax(1)), F.nll_loss),
    "log_softmax over the batch to nll_loss": (net(nn.LogSoftmax(0)), F.nll_loss),
    "sigmoid before bce_with_logits": (
        net(nn.Sigmoid()),
        lambda out, y: F.binary_cross_entropy_with_logits(out, one_hot(y)),
    ),
    "softmax before bce_with_logits": (
        net(nn.Softmax(1)),
        lambda out, y: F.binary_cross_entropy_with_logits(out, one_hot(y)),
    ),
    "relu before bce_with_logits": (
        net(nn.ReLU()),
        lambda out, y: F.binary_cross_entropy_with_logits(out, one_hot(y)),
    ),
    "two sigmoids": (
        net(nn.Sigmoid()),
        lambda out, y: F.binary_cross_entropy(out.sigmoid(), one_hot(y)),
    ),
    "logits to bce": (net(), lambda out, y: F.binary_cross_entropy(out, one_hot(y))),
    "softmax of one number to bce": (
        net(),
        lambda out, y: F.binary_cross_entropy(out[:, :1].softmax(1), (y[:, None] > 2).float()),
    ),
    "tanh to bce": (net(nn.Tanh()), lambda out, y: F.binary_cross_entropy(out, one_hot(y))),
    "probabilities to kl_div": (
        net(nn.Softmax(1)),
        lambda out, y: F.kl_div(out, one_hot(y), reduction="batchmean"),
    ),
    "logits to kl_div": (
        net(),
        lambda out, y: F.kl_div(out, one_hot(y), reduction="batchmean"),
    ),
    "logits to ctc_loss": (net(), lambda out, y: ctc(out)),
    "probabilities to ctc_loss": (net(nn.Softmax(1)), lambda out, y: ctc(out)),
    "log_softmax over time to ctc_loss": (
        net(),
        lambda out, y: ctc(out.view(8, 8, CLASSES).log_softmax(0)),
    ),
    "softmax for several labels": (
        net(nn.Softmax(1)),
        lambda out, y: F.binary_cross_entropy(out, two_labels(y)),
    ),
    "one of two terms": (
        net(),
        lambda out, y: F.cross_entropy(out, y) + F.cross_entropy(out.softmax(1), y),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_fails(name: str) -> None:
    model, loss = FAULTS[name]
    result = audited(model, loss)
    assert result.status is Status.FAIL, result.message
    assert result.fix
    assert result.location is not None


def two_terms(out: Tensor, y: Tensor) -> Tensor:
    overlap = dice(out, one_hot(y), dim=1)
    return 0.3 * F.binary_cross_entropy_with_logits(out, one_hot(y)) + 0.7 * (1 - overlap)


@pytest.mark.parametrize("loss", [lambda out, y: 1 - dice(out, one_hot(y)), two_terms])
def test_a_dice_loss_of_logits_fails(loss: Callable[..., Tensor]) -> None:
    result = audited(net(), loss)
    assert result.status is Status.FAIL
    assert "dice" in result.message


def focal(out: Tensor, there: Tensor) -> Tensor:
    entropy = F.binary_cross_entropy_with_logits(out, there, reduction="none")
    weight = torch.where(there > 0, 0.75, 0.25)
    return (weight * (1 - (-entropy).exp()) ** 2 * entropy).mean()


def hinge(out: Tensor, there: Tensor) -> Tensor:
    return (1 - (2 * there - 1) * out).clamp_min(0).mean()


def absolute(out: Tensor, there: Tensor) -> Tensor:
    return (out - there).abs().mean() + 0.0 * out.square().mean()


def linear(out: Tensor, there: Tensor) -> Tensor:
    return ((1 - 3 * there) * out).mean()


@pytest.mark.parametrize("loss", [focal, hinge, absolute, linear])
@pytest.mark.parametrize("bias", [-2.6, -2.2, -1.8])
def test_nearly_equal_outputs_are_no_overlap_by_chance(
    loss: Callable[..., Tensor], bias: float
) -> None:
    """Any loss of them has a gradient of two values, as that of overlaps is."""

    def model() -> nn.Module:
        layer = nn.Linear(8, 1)
        nn.init.normal_(layer.weight, std=1e-3)
        nn.init.constant_(layer.bias, bias)
        return layer

    rare = (torch.arange(640) % 10 == 0).float()[:, None]
    assert audited(model, loss, loader(y=rare)).status is not Status.FAIL


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "logits": (net(), F.cross_entropy),
    "smoothed and weighted": (
        net(),
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 6.0), label_smoothing=0.1),
    ),
    "log_softmax before cross_entropy": (net(nn.LogSoftmax(1)), F.cross_entropy),
    "log of softmax before cross_entropy": (
        net(),
        lambda out, y: F.cross_entropy((out.softmax(1) + 1e-9).log(), y),
    ),
    "log_softmax and nll_loss": (net(nn.LogSoftmax(1)), F.nll_loss),
    "log of softmax and nll_loss": (
        net(nn.Softmax(1)),
        lambda out, y: F.nll_loss((out + 1e-8).log(), y),
    ),
    "focal weight inside nll_loss": (
        net(nn.LogSoftmax(1)),
        lambda out, y: F.nll_loss((1 - out.exp()) ** 2 * out, y),
    ),
    "policy gradient": (
        net(nn.LogSoftmax(1)),
        lambda out, y: F.nll_loss(out * torch.linspace(-1, 1, len(out))[:, None], y),
    ),
    "logits after clamping": (net(nn.Hardtanh(-9, 9)), F.cross_entropy),
    "logits clipped by tanh": (net(nn.Tanh()), lambda out, y: F.cross_entropy(9 * out, y)),
    "scaled sigmoid as logits": (net(nn.Sigmoid()), lambda out, y: F.cross_entropy(9 * out, y)),
    "softmax of two and bce": (
        net(),
        lambda out, y: F.binary_cross_entropy(out[:, :2].softmax(1)[:, 1], (y > 2).float()),
    ),
    "log_softmax and ctc_loss": (net(nn.LogSoftmax(1)), lambda out, y: ctc(out)),
    "a penalty on blanks in ctc_loss": (
        net(nn.LogSoftmax(1)),
        lambda out, y: ctc(out - 2.0 * F.one_hot(torch.zeros_like(y), CLASSES)),
    ),
    "softmax and one label, by bce": (
        net(nn.Softmax(1)),
        lambda out, y: F.binary_cross_entropy(out, one_hot(y)),
    ),
    "sigmoid and several labels": (
        net(nn.Sigmoid()),
        lambda out, y: F.binary_cross_entropy(out, two_labels(y)),
    ),
    "dice of probabilities": (
        net(),
        lambda out, y: F.cross_entropy(out, y) + 1 - dice(out.softmax(1), one_hot(y)),
    ),
    "sigmoid and bce": (
        net(nn.Sigmoid()),
        lambda out, y: F.binary_cross_entropy(out, one_hot(y)),
    ),
    "logits and bce_with_logits": (
        net(),
        lambda out, y: F.binary_cross_entropy_with_logits(out, one_hot(y)),
    ),
    "squared error of probabilities": (
        net(nn.Softmax(1)),
        lambda out, y: F.mse_loss(out, one_hot(y)),
    ),
    "distillation": (
        net(),
        lambda out, y: (
            F.kl_div(
                F.log_softmax(out / 4, 1), F.softmax(out.detach() / 4, 1), reduction="batchmean"
            )
            + F.cross_entropy(out, y)
        ),
    ),
    "soft labels": (net(), lambda out, y: F.cross_entropy(out, one_hot(y) * 0.9 + 0.02)),
    "a gate beside the logits": (
        net(),
        lambda out, y: F.binary_cross_entropy_with_logits(
            torch.cat([out[:, :1].sigmoid(), out[:, 1:]], 1)[:, 1:], one_hot(y)[:, 1:]
        ),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_it_passes(name: str) -> None:
    model, loss = HEALTHY[name]
    result = audited(model, loss)
    expected = Status.SKIP if name == "squared error of probabilities" else Status.PASS
    assert result.status is expected, result.message


class TestMessages:
    def test_the_floor_is_computed_for_the_number_of_classes(self) -> None:
        assert floor_of(10) == pytest.approx(1.461, abs=1e-3)
        result = audited(net(nn.Softmax(1)), F.cross_entropy)
        assert f"{floor_of(CLASSES):.4g}" in result.message
        assert result.module == "3"

    def test_the_wrong_dimension_is_named(self) -> None:
        assert "dimension" in audited(net(nn.Softmax(0)), F.cross_entropy).message


class TestPower:
    def test_two_rows_are_enough_where_autograd_is_witness(self) -> None:
        data = loader(rows=4, batch=2)
        assert audited(net(nn.Softmax(1)), F.cross_entropy, data).status is Status.FAIL

    def test_few_rows_without_a_witness_prove_nothing(self) -> None:
        data = loader(rows=20, batch=4)
        result = audited(net(), lambda out, y: F.cross_entropy(Opaque.apply(out), y), data)
        assert result.status is Status.PASS

    def test_logits_that_look_like_probabilities_are_a_warning(self) -> None:
        result = audited(
            net(),
            lambda out, y: F.binary_cross_entropy_with_logits(
                (torch.rand_like(out) + 0 * out).clamp(0, 1), one_hot(y)
            ),
        )
        assert result.status is Status.WARN

    @pytest.mark.parametrize(("last", "said"), [(nn.ReLU(), "ReLU"), (nn.Tanh(), "below 0.4327")])
    def test_a_network_that_cannot_say_no_is_a_warning(self, last: nn.Module, said: str) -> None:
        result = audited(net(last), F.cross_entropy)
        assert result.status is Status.WARN
        assert said in result.message

    def test_a_network_whose_logits_all_start_near_a_half_passes(self) -> None:
        def build() -> nn.Module:
            model = net(outputs=CLASSES)()
            nn.init.zeros_(model[2].weight)
            nn.init.constant_(model[2].bias, 0.5)
            return model

        result = audited(build, lambda out, y: F.binary_cross_entropy_with_logits(out, one_hot(y)))
        assert result.status is Status.PASS


class TestShapes:
    def test_images_and_tokens(self) -> None:
        class Dense(nn.Module):
            def __init__(self, last: nn.Module) -> None:
                super().__init__()
                self.conv, self.last = nn.Conv2d(1, 3, 3, padding=1), last

            def forward(self, x: Tensor) -> Tensor:
                return self.last(self.conv(x))

        x = torch.randn(16, 1, 8, 8)
        data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=4)
        healthy = audited(lambda: Dense(nn.Identity()), F.cross_entropy, data)
        assert healthy.status is Status.PASS
        faulty = audited(lambda: Dense(nn.Softmax(1)), F.cross_entropy, data)
        assert faulty.status is Status.FAIL
        wrong = audited(lambda: Dense(nn.Softmax(2)), F.cross_entropy, data)
        assert "dimension" in wrong.message

    def test_no_such_loss_is_a_skip(self) -> None:
        result = audited(net(outputs=1), F.mse_loss, loader(torch.randn(640, 1)))
        assert result.status is Status.SKIP

    def test_a_crash_for_another_reason_is_an_error(self) -> None:
        def loss(out: Tensor, y: Tensor) -> Tensor:
            raise KeyError("label")

        assert audited(net(), loss).status is Status.ERROR


def test_what_was_measured_is_what_the_evidence_shows() -> None:
    result = audited(net(nn.Softmax(1)), F.cross_entropy)
    values = result.evidence[0].values
    assert f"from {values['smallest']:.3g} to {values['largest']:.3g}" in result.measured


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)])
@pytest.mark.parametrize("loss", [F.binary_cross_entropy, F.binary_cross_entropy_with_logits])
def test_a_softmax_over_a_single_value_fails(last: nn.Module, loss: Callable[..., Tensor]) -> None:
    y = (torch.arange(640) % 2).float()[:, None]
    result = audited(net(last, outputs=1), loss, loader(y))
    assert result.status is Status.FAIL
    assert "over a single value" in result.message


@pytest.mark.parametrize(("dim", "status"), [(0, Status.FAIL), (1, Status.SKIP)])
def test_a_softmax_by_hand_over_the_rows_fails(dim: int, status: Status) -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return -output.log_softmax(dim).gather(1, y[:, None]).mean()

    result = audited(net(), loss)
    assert result.status is status, result.message
    assert ("over the 64 rows" in result.message) is (dim == 0)


def test_as_many_rows_as_columns_may_be_contrasted() -> None:
    y = torch.arange(640) % CLASSES
    train = loader(y, batch=CLASSES)
    result = audited(net(), lambda o, y: -(o.softmax(0) * F.one_hot(y, CLASSES)).mean(), train)
    assert result.status is not Status.FAIL
