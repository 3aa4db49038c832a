"""How large the predictions can get that reach a loss, whatever the network's weights are.

A squashing, a cosine or a fixed temperature bounds them: made a hundred and ten thousand times as
large, weights then give the same largest prediction. Without a bound it grows with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.losses import LossCall
from nnaudit.probes.first_steps import First, FirstSteps, is_given
from nnaudit.state.snapshot import Subjects, preserved

REGRESSION = frozenset({"mse", "l1", "smooth_l1", "huber"})

_SCALES = (1e2, 1e4)
_DRAWS = 4
"""Directions in which weights grow: a sigmoid may end at 0 for all rows in one of them."""

_NOISE, _LEAST_NOISE = 2.0, 0.1
"""What is added to a weight, in root mean squares of its tensor, and at least."""

_GROWN = 1.5
"""Predictions that grow by more than this with the weights have no bound that is near."""

_MOST = 2**25
"""Networks of more weights are not tried out: it takes their memory twice."""

_MASKED = -1e4
"""Scores so low are masked out: of the row itself, of padding."""


@dataclass(frozen=True)
class Reach:
    """The bound of what one loss call gets as its prediction.

    Attributes:
        call: on the first batch.
        bound: the largest absolute value found; of class scores the largest difference between
            two of a row.
        classes: of class scores, how many of a row compete, at least; 0 for quantities.
    """

    call: LossCall
    bound: float
    classes: int = 0

    @property
    def floor(self) -> float:
        """The least cross-entropy of scores that differ by twice as much as was seen to differ."""
        return math.log1p((self.classes - 1) * math.exp(-2 * self.bound))

    @property
    def share(self) -> float:
        """That, as a share of the cross-entropy of equal probabilities."""
        return self.floor / math.log(self.classes)


class OutputReach(Probe[tuple[Reach, ...]]):
    """The bounds of squared and absolute errors' predictions, and of class scores."""

    probes = (FirstSteps,)

    def measure(self, audit: Audit) -> tuple[Reach, ...]:
        """Run one batch under weights of several sizes; nothing where no prediction is bounded.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        first = audit.probe(FirstSteps)
        if not first.completed or not _can_grow(audit.loop.models):
            return ()
        try:
            return tuple(_reaches(audit, first))
        except UserCodeError:
            return ()  # the program refuses such numbers


def _reaches(audit: Audit, first: First) -> Iterator[Reach]:
    loop, batch = audit.loop, first.batches[0]
    calls = loop.forward(batch).loss_calls
    asked = {n: call for n, call in enumerate(calls) if _is_asked(call, batch)}
    bounds = {n: [_extent(call)] for n, call in asked.items()}
    for draw in range(_DRAWS):
        sizes = []
        for scale in _SCALES:
            audit.clock.check()
            with _grown(loop, scale, draw):
                calls = loop.forward(batch).loss_calls
            sizes.append({n: _extent(calls[n]) for n in bounds if n < len(calls)})
        small, large = sizes
        bounds = {
            n: [*found, small[n], large[n]]
            for n, found in bounds.items()
            if n in small and n in large and large[n] <= _GROWN * max(small[n], found[0])
        }
        if not bounds:
            return
    for n, found in bounds.items():
        yield Reach(asked[n], max(found), _competing(asked[n]))


def _is_asked(call: LossCall, batch: Any) -> bool:
    if not call.compares or not call.input.is_floating_point() or not call.input.numel():
        return False
    if call.kind == "cross_entropy":
        whole = not call.target.is_floating_point()
        return whole and call.input.ndim > 1 and _competing(call) > 1
    return call.kind in REGRESSION and is_given(call, batch)


def _extent(call: LossCall) -> float:
    """Return the largest absolute prediction, or difference of two scores; infinite for NaN."""
    values = call.input.detach().float()
    if call.kind != "cross_entropy":
        size = float(values.abs().max())
    else:
        scores = values.movedim(1, -1).flatten(0, -2)
        kept = scores > _MASKED
        high = scores.masked_fill(~kept, -math.inf).amax(1)
        low = scores.masked_fill(~kept, math.inf).amin(1)
        size = float((high - low).max())
    return size if math.isfinite(size) else math.inf


def _competing(call: LossCall) -> int:
    if call.kind != "cross_entropy":
        return 0
    scores = call.input.detach().movedim(1, -1).flatten(0, -2)
    return int((scores > _MASKED).sum(1).min())


def _can_grow(models: Sequence[nn.Module]) -> bool:
    parameters = [p for model in models for p in model.parameters()]
    plain = all(type(p) is nn.Parameter and p.layout is torch.strided for p in parameters)
    if not plain or any(is_lazy(p) for p in parameters):
        return False
    return 0 < sum(p.numel() for p in parameters) <= _MOST


@contextmanager
def _grown(loop: Loop, scale: float, seed: int) -> Iterator[None]:
    """Make all trained weights ``scale`` times as large, after some noise of their own size."""
    generator = torch.Generator().manual_seed(seed)
    with preserved(Subjects(models=loop.models)):
        for model in loop.models:
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    _grow(parameter.data, scale, generator)
        yield


def _grow(weights: Tensor, scale: float, generator: torch.Generator) -> None:
    size = float(weights.float().square().mean().sqrt()) if weights.numel() else 0.0
    noise = torch.randn(weights.shape, generator=generator).to(weights)
    weights.add_(noise * max(_NOISE * size, _LEAST_NOISE)).mul_(scale)
