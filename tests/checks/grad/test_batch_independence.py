from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nnaudit.checks.grad.batch_independence import BatchIndependence
from nnaudit.context import Audit
from nnaudit.engine.runner import run_check
from nnaudit.loop.direct import DirectLoop
from nnaudit.report import Result, Status
from nnaudit.targets.target import Target


def floats() -> Tensor:
    return torch.randn(48, 6, 4, generator=torch.Generator().manual_seed(0))


def ids() -> Tensor:
    return torch.randint(1, 11, (48, 6), generator=torch.Generator().manual_seed(0))


def audited(model: Callable[[], nn.Module], x: Tensor | None = None, data: Any = None) -> Result:
    x = floats() if x is None else x
    y = torch.arange(len(x)) % 3
    data = data or DataLoader(TensorDataset(x, y), batch_size=12)
    target = Target(model, data, loss=F.cross_entropy)
    return run_check(BatchIndependence, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))


class Sequence(nn.Module):
    """Something done to (N, T, 8), between an embedding and the mean over time."""

    def __init__(self, tokens: bool = False) -> None:
        super().__init__()
        self.embed: nn.Module = nn.Embedding(11, 8) if tokens else nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.embed(x)).mean(1))


class View(Sequence):
    def between(self, h: Tensor) -> Tensor:
        n, t, d = h.shape
        return torch.tanh(h.reshape(t, n, d).transpose(0, 1))


class ScaledByLargest(Sequence):
    """One sample of the batch decides the scale of all."""

    def between(self, h: Tensor) -> Tensor:
        return h / h.abs().amax()


class ScaledByOwn(Sequence):
    def between(self, h: Tensor) -> Tensor:
        return h / h.abs().amax((1, 2), keepdim=True)


class TimeAsBatch(Sequence):
    def __init__(self, tokens: bool = False, batch_first: bool = False) -> None:
        super().__init__(tokens)
        self.rnn = nn.LSTM(8, 8, batch_first=batch_first)

    def between(self, h: Tensor) -> Tensor:
        return self.rnn(h)[0]


class Attention(Sequence):
    def __init__(self, tokens: bool = False, batch_first: bool = False) -> None:
        super().__init__(tokens)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def between(self, h: Tensor) -> Tensor:
        return self.attend(h, h, h)[0]


class SoftmaxOverBatch(Sequence):
    def between(self, h: Tensor) -> Tensor:
        return h.softmax(0)


class Centred(Sequence):
    def between(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


class Places(Sequence):
    """A position code for (time, batch, features), added to (batch, time, features)."""

    def __init__(self, tokens: bool = False, along: int = 0) -> None:
        super().__init__(tokens)
        self.along = along
        self.register_buffer("code", torch.sin(torch.arange(64.0)[:, None] * torch.rand(8)))

    def between(self, h: Tensor) -> Tensor:
        code = self.code[: h.shape[self.along]]
        return h + (code[:, None] if self.along == 0 else code)


class Affinity(nn.Module):
    """Similarities of all pairs of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.mean(1))
        return h @ h.T


FAULTS = [View, TimeAsBatch, Attention, SoftmaxOverBatch, Centred]


@pytest.mark.parametrize("tokens", [False, True], ids=["floats", "ids"])
@pytest.mark.parametrize("model", FAULTS)
def test_samples_that_influence_each_other(model: type[Sequence], tokens: bool) -> None:
    result = audited(lambda: model(tokens), ids() if tokens else floats())
    assert result.status is Status.FAIL
    assert result.location is not None
    assert result.location.file == __file__


@pytest.mark.parametrize(("model", "module"), [(TimeAsBatch, "rnn"), (Attention, "attend")])
def test_the_first_module_that_mixes_is_named(model: type[Sequence], module: str) -> None:
    assert audited(model).module == module


class Carried(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(self.rnn(x, state)[0][:, -1])


class PlacedAndCarried(Carried):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
        return super().forward(x, state) + torch.arange(float(len(x)))[:, None]


@pytest.mark.parametrize(
    ("model", "status"), [(Carried, Status.PASS), (PlacedAndCarried, Status.FAIL)]
)
def test_a_carried_state_has_its_samples_along_another_dimension(
    model: type[nn.Module], status: Status
) -> None:
    """As in truncated back-propagation through time: (layers, batch, size) beside the batch."""
    g = torch.Generator().manual_seed(1)
    h, c = torch.randn(1, 12, 8, generator=g), torch.randn(1, 12, 8, generator=g)

    def step(net: nn.Module, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0], (h, c)), batch[1])

    data = DataLoader(TensorDataset(floats(), torch.arange(48) % 3), batch_size=12)
    target = Target(model, data, training_step=step)
    result = run_check(BatchIndependence, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))
    assert result.status is status, result.message


def test_a_place_in_the_batch_that_matters() -> None:
    result = audited(Places)
    assert result.status is Status.FAIL
    assert "position in the batch" in result.message


@pytest.mark.parametrize("tokens", [False, True], ids=["floats", "ids"])
@pytest.mark.parametrize(
    "model",
    [
        Sequence,
        lambda tokens: TimeAsBatch(tokens, batch_first=True),
        lambda tokens: Attention(tokens, batch_first=True),
        lambda tokens: Places(tokens, along=1),
    ],
)
def test_near_misses(model: Callable[[bool], nn.Module], tokens: bool) -> None:
    result = audited(lambda: model(tokens), ids() if tokens else floats())
    assert result.status is Status.PASS
    assert result.steps == 0


def test_as_many_time_steps_as_samples() -> None:
    x = torch.randn(48, 12, 4)
    assert audited(lambda: TimeAsBatch(batch_first=True), x).status is Status.PASS
    assert audited(TimeAsBatch, x).status is Status.FAIL


def test_batch_normalisation_in_train_mode_only() -> None:
    def model(**options: Any) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(24, **options), nn.Linear(24, 3))

    assert audited(model).status is Status.PASS
    assert audited(lambda: model(track_running_stats=False)).status is Status.WARN


def test_rows_of_unknown_meaning_are_a_warning() -> None:
    x, y = floats()[:, 0], torch.arange(48) % 3

    class Set(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([x, x.mean(0, keepdim=True).expand_as(x)], 1))

    result = audited(Set, data=[(x[:12], y[:12]), (x[12:], y[12:])])
    assert result.status is Status.WARN


def test_nodes_of_one_graph_by_their_adjacency_are_skipped() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            return self.head(adjacency @ x)

    x, y = floats()[:, 0], torch.arange(48) % 3
    adjacency = (torch.rand(48, 48, generator=torch.Generator().manual_seed(1)) < 0.1).float()

    def step(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0], batch[1]), batch[2])

    target = Target(Graph, [(x, adjacency, y)], training_step=step)
    loop = DirectLoop(target, torch.device("cpu"), seed=0)
    result = run_check(BatchIndependence, Audit(loop))
    assert result.status is Status.SKIP
    assert "graph" in result.message


def test_mixing_behind_an_output_layer_that_starts_at_zero() -> None:
    def model(kind: type[Sequence]) -> nn.Module:
        made = kind()
        nn.init.zeros_(made.head.weight)
        return made

    assert audited(lambda: model(Attention)).status is Status.FAIL
    result = audited(lambda: model(Sequence))
    assert (result.status, result.steps) == (Status.PASS, 5)


def test_similarities_are_skipped() -> None:
    assert audited(Affinity).status is Status.SKIP


def test_a_batch_of_one_is_skipped() -> None:
    x, y = floats(), torch.arange(48) % 3
    data = DataLoader(TensorDataset(x, y), batch_size=1)
    assert audited(Sequence, data=data).status is Status.SKIP


class RowAttention(Sequence):
    """Alternates attention within each sample and between samples, as SAINT does."""

    def __init__(self, tokens: bool = False, batch_first: bool = True) -> None:
        super().__init__(tokens)
        self.within = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.between_rows = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def between(self, h: Tensor) -> Tensor:
        if self.within.batch_first:
            h = h + self.within(h, h, h)[0]
            rows = h.flatten(1)[None].view(1, len(h), -1, 8).mean(2)
            return h + self.between_rows(rows, rows, rows)[0][0][:, None]
        columns = h.transpose(0, 1)
        h = h + self.within(columns, columns, columns)[0].transpose(0, 1)
        return h + self.between_rows(h, h, h)[0]


class Memory(Sequence):
    """Answers from the most similar samples of the batch, read by hand."""

    def between(self, h: Tensor) -> Tensor:
        q = F.normalize(h.mean(1), dim=1)
        weights = (q @ q.T / 0.1).softmax(-1)
        return h + (weights @ h.mean(1))[:, None]


class SelfContained(Sequence):
    """Row attention over one long sequence, the samples in a row, with torch's encoder layer."""

    def __init__(self, tokens: bool = False) -> None:
        super().__init__(tokens)
        self.rows = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def between(self, h: Tensor) -> Tensor:
        return h + self.rows(h.mean(1)[None])[0][:, None]


@pytest.mark.parametrize(
    "model",
    [RowAttention, lambda: RowAttention(batch_first=False), Memory, SelfContained],
    ids=["batch first", "time first", "memory", "encoder layer"],
)
def test_an_attention_between_samples_by_design_is_a_warning(
    model: Callable[[], nn.Module],
) -> None:
    result = audited(model)
    assert result.status is Status.WARN
    assert "whatever their order" in result.message


@pytest.mark.parametrize("model", [SoftmaxOverBatch, Centred])
def test_a_reduction_over_the_samples_is_located(model: type[Sequence]) -> None:
    result = audited(model)
    assert "dimension 0" in result.message
    assert result.location is not None
    line = Path(__file__).read_text().splitlines()[result.location.line - 1]
    assert "h" in line and "0)" in line


def test_an_encoder_layer_that_takes_samples_for_time() -> None:
    class Forgotten(Sequence):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.TransformerEncoderLayer(8, 2, 16)

        def between(self, h: Tensor) -> Tensor:
            return self.body(h)

    result = audited(Forgotten)
    assert result.status is Status.FAIL
    assert "batch_first=False" in result.message


def test_a_scale_that_one_sample_decides_for_all_warns() -> None:
    result = audited(ScaledByLargest)
    assert result.status is Status.WARN
    assert "amax reduces over the samples" in result.message
    assert audited(ScaledByOwn).status is Status.PASS


class TwoTowers(nn.Module):
    """Returns two embeddings, and what ``compare`` makes of them."""

    def __init__(self, batch_first: bool, similarity: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 8)
        self.rnn, self.similarity = nn.GRU(8, 3, batch_first=batch_first), similarity

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        one, two = self.one(x.mean(1)), self.rnn(self.two(x))[0][:, -1]
        return (one, two @ one.t()) if self.similarity else (one, two)


def test_a_further_output_may_fail() -> None:
    def asked(model: Callable[[], nn.Module]) -> Result:
        data = DataLoader(TensorDataset(floats(), torch.arange(48) % 3), batch_size=12)

        def loss(output: Any, y: Tensor) -> Tensor:
            return F.cross_entropy(output[0], y) + output[1].square().mean()

        target = Target(model, data, loss=loss)
        return run_check(BatchIndependence, Audit(DirectLoop(target, torch.device("cpu"), seed=0)))

    wrong = asked(lambda: TwoTowers(batch_first=False))
    assert wrong.status is Status.FAIL
    assert wrong.module == "rnn"
    assert asked(lambda: TwoTowers(batch_first=True)).status is Status.PASS
    assert asked(lambda: TwoTowers(batch_first=True, similarity=True)).status is Status.PASS
