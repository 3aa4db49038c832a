"""Losses written by hand, recognised as functions of output and target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.loop.direct import DirectLoop
from nnaudit.loop.losses import LossCall
from nnaudit.targets.target import Target
from nnaudit.training.fitting import evaluate_rows
from nnaudit.training.loss_reader import LossReader, find_formula

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
SHARES = X[:, :3].softmax(1)

Loss = Callable[[Tensor, Tensor], Tensor]


class Softmax(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 3), nn.Softmax(1))


class Sigmoid(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 3), nn.Sigmoid())


def loop_of(loss: Loss, y: Tensor = Y, model: Callable[[], nn.Module] | None = None) -> DirectLoop:
    data = DataLoader(TensorDataset(X, y), batch_size=16)
    made = model or (lambda: nn.Linear(6, 3))
    return DirectLoop(Target(made, data, loss=loss), torch.device("cpu"), seed=0)


def read(
    loss: Loss, y: Tensor = Y, model: Callable[[], nn.Module] | None = None
) -> LossCall | None:
    """Return the call that the loss of two batches is; it must be one of the same kind."""
    loop = loop_of(loss, y, model)
    reader = LossReader(loop)
    first, second, *_ = loop.batches()
    calls = [
        reader.call(batch, loop.forward(batch, train=True).observation) for batch in (first, second)
    ]
    kinds = {call.kind if call is not None else "" for call in calls}
    assert len(kinds) == 1
    return calls[0]


def smoothing(output: Tensor, target: Tensor) -> Tensor:
    """As in timm: the target's part and the mean over all classes."""
    logarithms = output.log_softmax(-1)
    right = -logarithms.gather(-1, target.unsqueeze(1)).squeeze(1)
    return (0.9 * right - 0.1 * logarithms.mean(-1)).mean()


@pytest.mark.parametrize(
    ("loss", "y", "model", "kind", "options"),
    [
        (lambda o, y: -o.log_softmax(1)[range(len(y)), y].mean(), Y, None, "cross_entropy", {}),
        (lambda o, y: -o.log()[range(len(y)), y].mean(), Y, Softmax, "cross_entropy", {}),
        (
            lambda o, y: -(o.softmax(1).log() * y).sum(1).mean(),
            SHARES, None, "cross_entropy", {"reduction": "mean"},
        ),
        (
            lambda o, y: -(o.log() * F.one_hot(y, 3)).sum(),
            Y, Softmax, "cross_entropy", {"reduction": "sum"},
        ),
        (smoothing, Y, None, "cross_entropy", {"label_smoothing": 0.1}),
        (
            lambda o, y: -(y * o.log() + (1 - y) * (1 - o).log()).mean(),
            (X[:, :3] > 0).float(), Sigmoid, "bce", {},
        ),
        (lambda o, y: ((o - y) ** 2).mean(), X[:, :3], None, "mse", {"reduction": "mean"}),
        (lambda o, y: ((o - y) ** 2).sum(), X[:, :3], None, "mse", {"reduction": "sum"}),
        (lambda o, y: (o - y).abs().mean(), X[:, :3], None, "l1", {}),
    ],
)  # fmt: skip
def test_a_formula_is_the_function_of_torch_that_it_is(
    loss: Loss, y: Tensor, model: Any, kind: str, options: dict[str, Any]
) -> None:
    call = read(loss, y, model)
    assert call is not None
    assert call.kind == kind
    assert {name: call.arguments[name] for name in options} == pytest.approx(options)


def focal(output: Tensor, target: Tensor) -> Tensor:
    right = output.log_softmax(1)[range(len(target)), target]
    return (-((1 - right.exp()) ** 2) * right).mean()


@pytest.mark.parametrize(
    "loss",
    [
        focal,
        lambda o, y: -o.log_softmax(1)[range(len(y)), y].mean() + o.square().mean(),
        lambda o, y: (
            -(torch.tensor([1.0, 2.0, 3.0])[y] * o.log_softmax(1)[range(len(y)), y]).mean()
        ),
        lambda o, y: -o.log_softmax(1)[range(len(y)), y][y > 0].mean(),
        lambda o, y: o.square().mean(),
    ],
)
def test_other_losses_are_not_taken_for_one(loss: Loss) -> None:
    assert read(loss) is None


def test_agreeing_on_one_output_is_not_enough() -> None:
    """Outputs of zero cost the same, up to a factor, by many functions."""

    class Nothing(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 3)
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    assert read(focal, Y, Nothing) is None
    plain = read(lambda o, y: -o.log_softmax(1)[range(len(y)), y].mean(), Y, Nothing)
    assert plain is not None and plain.kind == "cross_entropy"


def test_what_cannot_be_tried_out_is_believed_only_on_request() -> None:
    def step(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        inner = model.weight @ x.T + model.bias[:, None]  # not what the model returns
        model(x)
        return -inner.T.log_softmax(1)[range(len(y)), y].mean()

    data = DataLoader(TensorDataset(X, Y), batch_size=16)
    target = Target(lambda: nn.Linear(6, 3), data, training_step=step)
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    batch = next(iter(loop.batches()))
    seen = loop.forward(batch, train=True).observation
    assert find_formula(loop, batch, seen, batch[1]) is None
    found = find_formula(loop, batch, seen, batch[1], untried=True)
    assert found is not None and found.function is F.cross_entropy


def test_the_rows_of_a_formula_have_bounds_and_nothing_is_left_changed() -> None:
    loop = loop_of(
        lambda o, y: -o.log_softmax(1)[range(len(y)), y].mean(),
        model=lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)),
    )
    part = next(iter(loop.batches()))
    plain = loop_of(
        F.cross_entropy, model=lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    )
    seen, recorded = evaluate_rows(loop, [part]), evaluate_rows(plain, [part])
    assert seen.bounds is not None
    assert seen.bounds == recorded.bounds
    for one, other in zip(loop.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(one, other)
