"""A small network of the right kind for the same rows and the same loss, trained by a plain loop.

Where a program cannot fit its rows, the question is whether anything could. The reference is
chosen from the inputs that the model receives and the shape that its loss receives: a perceptron
for vectors, a small convolutional network for images, a fully convolutional one for a prediction
per pixel, an embedding with a recurrent layer for tokens, one-dimensional convolutions for series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from nnaudit.context import Clock
from nnaudit.loop.losses import LossCall
from nnaudit.training.fitting import Limits, RowEvaluation, Run, densify, train
from nnaudit.training.loss_bounds import input_tensors

_MOST_FEATURES = 200_000
_MOST_PARAMETERS = 30_000_000
_TOKEN_SIZE = 32

Predict = Callable[[int], Tensor]
"""Returns the loss's input for the part of that number."""


def train_on(
    parameters: Sequence[Tensor],
    predict: Predict,
    evaluation: RowEvaluation,
    *,
    label: str,
    learning_rate: float,
    level: float | None,
    limits: Limits,
    clock: Clock,
    seed: int = 0,
) -> Run:
    """Train ``parameters`` with Adam on the program's own loss, in a plain loop.

    ``predict`` makes the loss's input; the loss function, its target and its other arguments are
    those of the program's own call.

    Raises:
        OutOfBudgetError: the audit's time is used up.
    """
    optimizer = torch.optim.Adam(parameters, learning_rate)

    def step(part: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = evaluation.calls[part].recompute(predict(part))
        loss.backward()  # type: ignore[no-untyped-call]
        densify(parameters)
        optimizer.step()
        return float(loss.detach())

    return train(
        step,
        len(evaluation.parts),
        label=label,
        level=level,
        floor=evaluation.bounds.floor if evaluation.bounds else 0.0,
        limits=limits,
        clock=clock,
        seed=seed,
    )


class Reference(nn.Module):
    """A network from input tensors to the input of a loss.

    Attributes:
        kind: what it is, for people: ``a small convolutional network``.
    """

    def __init__(
        self, kind: str, body: nn.Module, assemble: Callable[[Tensor, int], Tensor]
    ) -> None:
        super().__init__()
        self.kind = kind
        self.body = body
        self._assemble = assemble

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the loss's input for the given input tensors, each with one row per example."""
        made: Tensor = self._assemble(self.body(tensors), len(tensors[0]))
        return made


def inputs_of(evaluation: RowEvaluation, part: int) -> list[Tensor]:
    """Return the tensors with a row per example that enter the model with that part."""
    return input_tensors(evaluation.feds[part], evaluation.sizes[part])


def reference_for(
    evaluation: RowEvaluation, *, linear: bool = False, seed: int = 0
) -> Reference | None:
    """Build the reference for the rows of ``evaluation``; None where there is no way to.

    Args:
        linear: without hidden layers, to be compared with a model that has none.
        seed: of the initial weights.
    """
    if not evaluation.calls or not evaluation.feds:
        return None
    call, rows = evaluation.calls[0], evaluation.sizes[0]
    parts = [inputs_of(evaluation, part) for part in range(len(evaluation.parts))]
    if not parts[0] or any(t.is_complex() for t in parts[0]) or call.input.numel() % rows:
        return None
    if any(len(p) != len(parts[0]) for p in parts):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = _build(parts, call, rows, linear=linear)
        except RuntimeError:  # parts of different widths
            return None
    if made is None or sum(p.numel() for p in made.parameters()) > _MOST_PARAMETERS:
        return None
    return made.to(parts[0][0].device)


def fit_reference(
    evaluation: RowEvaluation,
    *,
    limits: Limits,
    clock: Clock,
    linear: bool = False,
    seed: int = 0,
) -> tuple[str, Run] | None:
    """Train the reference on the rows; return its kind and the run, None where there is none."""
    network = reference_for(evaluation, linear=linear, seed=seed)
    if network is None:
        return None
    level = evaluation.bounds.level(evaluation.loss) if evaluation.bounds else None
    inputs = [inputs_of(evaluation, part) for part in range(len(evaluation.parts))]
    try:
        run = train_on(
            list(network.parameters()),
            lambda part: network(inputs[part]),
            evaluation,
            label=network.kind,
            learning_rate=3e-3,
            level=level,
            limits=limits,
            clock=clock,
            seed=seed,
        )
    except RuntimeError:  # a later part of another shape
        return None
    return network.kind, run


def _build(
    parts: list[list[Tensor]], call: LossCall, rows: int, *, linear: bool
) -> Reference | None:
    tensors = parts[0]
    shape, per_row = call.input.shape, call.input.numel() // rows
    finish = _finish(call)
    flat = _flat_assembly(shape, finish)
    floating = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    ids = [i for i, t in enumerate(tensors) if _is_token_ids(t)]
    if linear:
        return Reference("a linear model", _Flat(parts, (), per_row), flat)
    if ids and not floating:
        most = 1 + max(int(part[ids[0]].max()) for part in parts)
        return _token_reference(ids[0], most, tensors[ids[0]], shape, rows, finish)
    if floating and tensors[floating[0]].ndim in (3, 4):
        return _convolutional(floating[0], parts, shape, per_row, finish)
    if sum(t[0].numel() for t in tensors) > _MOST_FEATURES:
        return None
    return Reference("a perceptron with two hidden layers", _Flat(parts, (256, 256), per_row), flat)


def _convolutional(
    where: int,
    parts: list[list[Tensor]],
    shape: torch.Size,
    per_row: int,
    finish: Callable[[Tensor], Tensor],
) -> Reference:
    """For images and series."""
    main = parts[0][where]
    flat = _flat_assembly(shape, finish)
    if main.ndim == 3:
        series = _Series(where, parts, per_row)
        return Reference("a small one-dimensional convolutional network", series, flat)
    if len(shape) == 4 and shape[2:] == main.shape[2:]:
        pixels = _Pixels(where, parts, shape[1])
        return Reference("a small fully convolutional network", pixels, lambda y, n: finish(y))
    return Reference("a small convolutional network", _Images(where, parts, per_row), flat)


def _is_token_ids(tensor: Tensor) -> bool:
    """Integers in rows of several: not a mask."""
    whole = not tensor.is_floating_point() and tensor.dtype is not torch.bool
    return whole and tensor.ndim == 2 and tensor.shape[1] > 1 and int(tensor.max()) > 1


def _flat_assembly(
    shape: torch.Size, finish: Callable[[Tensor], Tensor]
) -> Callable[[Tensor, int], Tensor]:
    """Lay a row of numbers per example out as the loss expects, row by row."""

    def assemble(y: Tensor, rows: int) -> Tensor:
        return finish(y.reshape(-1, *shape[1:]) if len(shape) > 1 else y.reshape(-1))

    return assemble


def _finish(call: LossCall) -> Callable[[Tensor], Tensor]:
    """From numbers without bounds to what the loss takes: log-probabilities, rates, scales."""
    if call.kind in ("nll", "kl_div"):
        return lambda y: y.log_softmax(1 if y.ndim > 1 else 0)
    if call.kind == "bce":
        return torch.sigmoid
    if call.kind == "poisson_nll" and not call.arguments.get("log_input", True):
        return nn.functional.softplus
    if call.kind in ("mse", "l1", "smooth_l1", "huber"):
        target = call.target.detach().float()
        mean, deviation = target.mean(), target.std().clamp_min(1e-12)
        return lambda y: mean + deviation * y
    return lambda y: y


class _Standard(nn.Module):
    """Brings a floating tensor to zero mean and unit deviation per feature or channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        values = torch.nan_to_num(values.detach().float())
        over = (0, *range(2, values.ndim)) if values.ndim > 2 else (0,)
        deviation, mean = torch.std_mean(values, dim=over, keepdim=True, correction=0)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", torch.where(deviation > 1e-12, deviation, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.nan_to_num(x.float()) - self.mean) / self.deviation


class _Flat(nn.Module):
    """A perceptron over everything that enters: floats standardised, integers embedded."""

    def __init__(self, parts: list[list[Tensor]], hidden: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        entries: list[nn.Module] = []
        width = 0
        for i in range(len(parts[0])):
            values = torch.cat([p[i].reshape(len(p[i]), -1) for p in parts])
            if values.is_floating_point() or values.dtype is torch.bool:
                entries.append(_Standard(values))
                width += values.shape[1]
            else:
                entries.append(_Embedded(int(values.min()), int(values.max())))
                width += values.shape[1] * _TOKEN_SIZE
        self.entries = nn.ModuleList(entries)
        sizes = [width, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        entered = [
            entry(t.reshape(len(t), -1)).flatten(1)
            for entry, t in zip(self.entries, tensors, strict=True)
        ]
        made: Tensor = self.layers(torch.cat(entered, dim=1))
        return made


class _Embedded(nn.Module):
    """Vectors for integers of a known range; a wide one is folded."""

    def __init__(self, lowest: int, highest: int) -> None:
        super().__init__()
        self._lowest = lowest
        self._count = min(highest - lowest + 1, 100_000)
        self.table = nn.Embedding(self._count, _TOKEN_SIZE)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.table((x.long() - self._lowest) % self._count)
        return made


class _Images(nn.Module):
    """Two convolutions, pooling to 4 x 4, two linear layers."""

    def __init__(self, where: int, parts: list[list[Tensor]], outputs: int) -> None:
        super().__init__()
        self._where = where
        values = torch.cat([p[where] for p in parts])
        self.standard = _Standard(values)
        stride = 2 if min(values.shape[2:]) >= 16 else 1
        self.layers = nn.Sequential(
            nn.Conv2d(values.shape[1], 32, 3, stride, 1),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride, 1),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, 128),
            nn.ReLU(),
            nn.Linear(128, outputs),
        )

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        made: Tensor = self.layers(self.standard(tensors[self._where]))
        return made


class _Pixels(nn.Module):
    """Convolutions of growing reach that keep the size of the image."""

    def __init__(self, where: int, parts: list[list[Tensor]], outputs: int) -> None:
        super().__init__()
        self._where = where
        values = torch.cat([p[where] for p in parts])
        self.standard = _Standard(values)
        layers: list[nn.Module] = []
        channels = values.shape[1]
        for reach in (1, 2, 4):
            layers += [
                nn.Conv2d(channels, 32, 3, padding=reach, dilation=reach),
                nn.GroupNorm(8, 32),
                nn.ReLU(),
            ]
            channels = 32
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, outputs, 1))

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        made: Tensor = self.layers(self.standard(tensors[self._where]))
        return made


class _Series(nn.Module):
    """One-dimensional convolutions along the longer axis."""

    def __init__(self, where: int, parts: list[list[Tensor]], outputs: int) -> None:
        super().__init__()
        self._where = where
        values = torch.cat([p[where] for p in parts])
        self._swap = values.shape[1] > values.shape[2]  # (N, time, channels)
        values = values.transpose(1, 2) if self._swap else values
        self.standard = _Standard(values)
        self.layers = nn.Sequential(
            nn.Conv1d(values.shape[1], 64, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(64, 64, 5, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(8),
            nn.Flatten(),
            nn.Linear(64 * 8, 128),
            nn.ReLU(),
            nn.Linear(128, outputs),
        )

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        x = tensors[self._where]
        made: Tensor = self.layers(self.standard(x.transpose(1, 2) if self._swap else x))
        return made


class _Tokens(nn.Module):
    """An embedding and a recurrent layer: what it knows at a position comes from before it."""

    def __init__(self, where: int, tokens: int, outputs: int, *, pooled: bool) -> None:
        super().__init__()
        self._where, self._tokens, self._pooled = where, tokens, pooled
        self.embed = nn.Embedding(tokens, 64)
        self.recurrent = nn.GRU(64, 128, batch_first=True)
        self.head = nn.Linear(128, outputs)

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        ids = tensors[self._where].long().clamp(0, self._tokens - 1)
        states, _ = self.recurrent(self.embed(ids))
        made: Tensor = self.head(states.amax(dim=1) if self._pooled else states)
        return made


def _token_reference(
    where: int,
    most: int,
    tokens: Tensor,
    shape: torch.Size,
    rows: int,
    finish: Callable[[Tensor], Tensor],
) -> Reference:
    """Per position where the loss has a prediction for (nearly) each, else per row."""
    length, kind = tokens.shape[1], "an embedding with a recurrent layer"

    def body(outputs: int, *, pooled: bool) -> _Tokens:
        return _Tokens(where, most, outputs, pooled=pooled)

    if len(shape) == 3 and shape[0] == rows and shape[2] in (length, length - 1):
        return Reference(
            kind,
            body(shape[1], pooled=False),
            lambda y, n: finish(y[:, : shape[2]].transpose(1, 2)),
        )
    flat = len(shape) == 2 and shape[0] in (rows * length, rows * (length - 1))
    if flat or (len(shape) == 3 and shape[0] == rows and shape[1] in (length, length - 1)):
        kept = shape[0] // rows if flat else shape[1]
        return Reference(
            kind,
            body(shape[-1], pooled=False),
            lambda y, n: finish(y[:, :kept].reshape(-1, *shape[1:])),
        )
    per_row = int(torch.Size(shape).numel()) // rows
    return Reference(kind, body(per_row, pooled=True), _flat_assembly(shape, finish))
