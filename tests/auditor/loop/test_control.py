"""Holding the learning rate, and switching dropout off, for the time of a measurement."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import target
from torch import nn

from nnaudit.loop.control import constant_lr, output_replaced, without_dropout
from nnaudit.loop.direct import DirectLoop


class Functional(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


class Fused(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, None, 0.5 if self.training else 0.0)


class FusedByName(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)


class Own(nn.Module):
    """Stochastic depth as timm writes it."""

    def __init__(self):
        super().__init__()
        self.path = DropPath()

    def forward(self, x):
        return self.path(x)


class DropPath(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop_prob = 0.5

    def forward(self, x):
        if self.drop_prob == 0 or not self.training:
            return x
        return x * (torch.rand(x.shape[0]) > self.drop_prob).view(-1, 1, 1)


MODELS = [
    nn.Dropout(0.5), nn.Dropout1d(0.5), nn.AlphaDropout(0.5), Functional(), Fused(),
    FusedByName(), Own(),
    nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
    nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True),
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_dropout_of_every_kind_is_off_in_train_mode(model: nn.Module) -> None:
    x = torch.randn(4, 6, 8)
    torch.manual_seed(0)

    def outputs() -> list[torch.Tensor]:
        made = [model(x) for _ in range(2)]
        return [m[0] if isinstance(m, tuple) else m for m in made]

    model.train()
    noisy = outputs()
    assert not torch.equal(*noisy)
    with without_dropout(model):
        assert torch.equal(*outputs())
        assert model.training
    assert not torch.equal(*outputs())


def test_batch_norm_still_uses_its_batch() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    with without_dropout(model):
        assert model(torch.randn(64, 3) + 5).mean().abs() < 0.1


def rates(loop: DirectLoop) -> list[float]:
    return [group["lr"] for group in loop.optimizers[0].param_groups]


def test_the_rate_is_a_multiple_of_the_authors() -> None:
    loop = DirectLoop(target(), torch.device("cpu"), seed=0)
    batch = next(loop.batches())
    with constant_lr(loop, 0.5):
        loop.step(batch)
        assert rates(loop) == [0.05]


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / 100), 0.1),
        (lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=50), 0.3),
        (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50), 0.1),
    ],
)
def test_the_authors_rate_is_the_peak_of_the_plan(scheduler, expected: float) -> None:
    loop = DirectLoop(target(scheduler=scheduler), torch.device("cpu"), seed=0)
    with constant_lr(loop):
        loop.step(next(loop.batches()))
        assert rates(loop) == [pytest.approx(expected)]


def test_an_output_is_replaced_where_it_has_the_shape_of_what_replaces_it() -> None:
    loop = DirectLoop(target(), torch.device("cpu"), seed=0)
    batch = next(loop.batches())
    inputs = batch[0]
    other = torch.full_like(loop.model(inputs), 7.0)
    with output_replaced(loop, lambda _: other):
        assert torch.equal(loop.model(inputs), other)
        alone = loop.model(inputs[:1])  # an agent that acts
    assert alone.shape[0] == 1
    assert not torch.equal(alone, other[:1])
