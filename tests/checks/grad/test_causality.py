from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.causality import Causality
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def tokens() -> Tensor:
    return torch.randint(1, 12, (32, 11), generator=torch.Generator().manual_seed(0))


def flat(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def audited(model: Callable[[], nn.Module], data: Any = None, loss: Any = flat) -> Result:
    ids = tokens()
    data = data or DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=8)
    target = Target(model, data, loss=loss)
    return run_check(Causality, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class Attends(nn.Module):
    def __init__(self, causal: bool = False, zero: bool = False) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(12, 16), nn.Linear(16, 48)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 12)
        self.causal = causal
        if zero:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.head(x + self.out(mixed))


class OffByOne(Attends):
    """A mask that lets each position see the next one."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        t = ids.shape[1]
        mask = torch.ones(t, t, dtype=torch.bool).tril(1)
        return self.head(x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


class Reads(nn.Module):
    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(16 if bidirectional else 8, 12)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


class Convolves(nn.Module):
    def __init__(self, padding: tuple[int, int]) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(12, 8), nn.Conv1d(8, 12, 3)
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        return self.conv(F.pad(self.embed(ids).transpose(1, 2), self.padding)).transpose(1, 2)


@pytest.mark.parametrize(
    "model",
    [
        Attends,
        lambda: Attends(zero=True),
        OffByOne,
        lambda: Reads(bidirectional=True),
        lambda: Convolves((1, 1)),
    ],
    ids=["no mask", "no mask, starts at zero", "mask off by one", "bidirectional", "padding"],
)
def test_a_model_that_sees_the_future(model: Callable[[], nn.Module]) -> None:
    result = audited(model)
    assert result.status is Status.FAIL
    assert "sees the tokens it predicts" in result.message


@pytest.mark.parametrize(
    "model",
    [
        lambda: Attends(causal=True),
        lambda: Attends(causal=True, zero=True),
        lambda: Reads(bidirectional=False),
        lambda: Convolves((2, 0)),
    ],
)
def test_a_causal_model(model: Callable[[], nn.Module]) -> None:
    assert audited(model).status is Status.PASS


class TestUnshifted:
    def test_a_causal_model_that_copies(self) -> None:
        ids = tokens()
        data = DataLoader(TensorDataset(ids, ids.clone()), batch_size=8)
        result = audited(lambda: Attends(causal=True), data)
        assert result.status is Status.FAIL
        assert "not shifted" in result.message

    def test_an_auto_encoder(self) -> None:
        ids = tokens()
        data = DataLoader(TensorDataset(ids, ids.clone()), batch_size=8)
        assert audited(Attends, data).status is Status.SKIP

    def test_the_loss_shifts(self) -> None:
        ids = tokens()
        data = DataLoader(TensorDataset(ids, ids.clone()), batch_size=8)

        def loss(logits: Tensor, target: Tensor) -> Tensor:
            return flat(logits[:, :-1], target[:, 1:])

        assert audited(lambda: Attends(causal=True), data, loss).status is Status.PASS
        assert audited(Attends, data, loss).status is Status.FAIL


class TestOtherShapes:
    def test_time_first(self) -> None:
        columns = tokens().T

        class TimeFirst(nn.Module):
            def __init__(self, bidirectional: bool) -> None:
                super().__init__()
                self.embed, self.rnn = (
                    nn.Embedding(12, 8),
                    nn.LSTM(8, 8, bidirectional=bidirectional),
                )
                self.head = nn.Linear(16 if bidirectional else 8, 12)

            def forward(self, ids: Tensor) -> Tensor:
                return self.head(self.rnn(self.embed(ids))[0]).flatten(0, 1)

        data = [(columns[:-1], columns[1:].reshape(-1))]
        assert audited(lambda: TimeFirst(False), data, F.cross_entropy).status is Status.PASS
        assert audited(lambda: TimeFirst(True), data, F.cross_entropy).status is Status.FAIL

    def test_a_forecast_of_numbers(self) -> None:
        class Forecast(nn.Module):
            def __init__(self, bidirectional: bool) -> None:
                super().__init__()
                self.rnn = nn.GRU(2, 8, batch_first=True, bidirectional=bidirectional)
                self.head = nn.Linear(16 if bidirectional else 8, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.rnn(x)[0])

        x = torch.randn(32, 9, 2)
        data = DataLoader(TensorDataset(x[:, :-1], x[:, 1:]), batch_size=8)
        assert audited(lambda: Forecast(False), data, F.mse_loss).status is Status.PASS
        assert audited(lambda: Forecast(True), data, F.mse_loss).status is Status.FAIL

    def test_a_prefix_without_targets_may_see_itself(self) -> None:
        class Prefix(Attends):
            def forward(self, ids: Tensor) -> Tensor:
                t = ids.shape[1]
                mask = torch.ones(t, t, dtype=torch.bool).tril()
                mask[:4, :4] = True
                x = self.embed(ids)
                q, k, v = self.qkv(x).chunk(3, -1)
                return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

        ids = tokens()
        target = ids[:, 1:].clone()
        target[:, :3] = -100
        data = DataLoader(TensorDataset(ids[:, :-1], target), batch_size=8)
        assert audited(Prefix, data).status is Status.PASS

    def test_a_classifier_is_skipped(self) -> None:
        class Classifier(Reads):
            def forward(self, ids: Tensor) -> Tensor:
                return super().forward(ids)[:, -1]

        ids = tokens()
        data = DataLoader(TensorDataset(ids, ids[:, 0]), batch_size=8)
        assert audited(lambda: Classifier(False), data, F.cross_entropy).status is Status.SKIP
