"""The weights that validation runs with, where a program loads an average into the network.

A moving average that is kept in a dict or a list of tensors is no network: it is copied into the
one that is trained, this is validated, and gets its own weights back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.living import living
from nnaudit.measure.movement import same
from nnaudit.probes.averaged_copies import (
    cosine,
    plain_name,
    planned_updates,
    straight_share,
    values_of,
)

_STEPS = 3

_PATIENCE = 60
"""Steps after which an average that is updated every so many steps has been: 10 or 32, say."""

_EVEN = 1e-3
"""Decays that differ by less are one."""


@dataclass(frozen=True)
class ValidatedWeights:
    """An average of the weights that is in the network while it is validated.

    Attributes:
        held: what the program keeps it in: ``dict``, ``list`` or the class of a network.
        weights: how many tensors it has for the network's parameters.
        alignment: the cosine between its way in some steps and the one to the trained weights.
        stood: how many steps it stood still, bit for bit, and over the end of an epoch; 0 where it
            has moved.
        decay: the share of the distance to the trained weights that every step left; None where
            it was not the same in all of them.
        updates: optimizer steps of the whole run; 0 where that is not known.
        remained: the network went on training with these weights, bit for bit.
        statistics: running statistics that training changed.
        stale: those of them that were bit for bit the same in two validations.
    """

    held: str
    weights: int
    alignment: float
    stood: int
    decay: float | None
    updates: int
    remained: bool
    statistics: int
    stale: int


class ValidatedAverage(Probe[ValidatedWeights | None]):
    """Goes through the ends of two epochs, and looks what is in the network meanwhile."""

    def measure(self, audit: Audit) -> ValidatedWeights | None:
        """Return the average; None where validation has the trained weights, or is not reached.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        if loop.makes_batches or isinstance(loop.model, torch.jit.ScriptModule):
            return None
        try:
            batch = next(iter(loop.batches()))
            loop.step(batch)
            audit.clock.check()
            first = _between_epochs(loop, batch)
            average = first.average if first is not None else None
            if first is None or average is None:
                return None
            way = _followed(audit, average)
            second = _between_epochs(loop, batch)
        except UserCodeError:
            return None
        if second is None or not second.validated:
            return None
        return _told(loop, average, (first, second), way)


@dataclass(frozen=True)
class _Interval:
    """What the network held around a validation: parameters and floating buffers by name.

    ``average`` is what else held the weights of validation then, where they were not the trained.
    """

    trained: dict[str, Tensor]
    validated: dict[str, Tensor]
    resumed: dict[str, Tensor]
    weights: tuple[str, ...]
    average: _Average | None

    @property
    def remained(self) -> bool:
        """Whether training went on with the weights of validation."""
        return bool(self.resumed) and all(
            same(self.resumed[name], self.validated[name]) for name in self.weights
        )


def _between_epochs(loop: Loop, batch: Any) -> _Interval | None:
    """End an epoch; None where none can be ended."""
    model = loop.model
    trained = values_of(model)
    names = tuple(n for n in map(plain_name, dict(model.named_parameters())) if n in trained)
    validated: dict[str, Tensor] = {}
    resumed: dict[str, Tensor] = {}
    found: list[_Average | None] = []

    def called(module: nn.Module, args: Any) -> None:
        if not module.training and not torch.is_grad_enabled() and not validated:
            validated.update(values_of(model))
            if not all(same(validated[name], trained[name]) for name in names):
                found.append(_held(model, names, validated))
        elif module.training and torch.is_grad_enabled() and validated and not resumed:
            resumed.update(values_of(model))

    with ExitStack() as stack:
        for module in model.modules():  # a part may be called by itself
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(called).remove)
        if loop.next_epoch(batch) is None:
            return None
    return _Interval(trained, validated, resumed, names, found[0] if found else None)


@dataclass(frozen=True)
class _Average:
    """Where the program keeps an average, and the names of its tensors in the network."""

    holder: Any
    names: tuple[str, ...]

    def values(self) -> list[Tensor]:
        """Return its tensors by now, in the order of ``names``."""
        if isinstance(self.holder, nn.Module):
            held = values_of(self.holder, copy=False)
        elif isinstance(self.holder, dict):
            held = {plain_name(str(name)): value for name, value in self.holder.items()}
        else:
            return list(self.holder)[: len(self.names)]
        return [held[name] for name in self.names]

    def vector(self) -> Tensor:
        """Return a copy of all its numbers."""
        return torch.cat([value.detach().double().flatten() for value in self.values()])


def _held(
    model: nn.Module, weights: tuple[str, ...], validated: dict[str, Tensor]
) -> _Average | None:
    """Return what holds the weights that ``model`` is validated with, by their values."""
    own = {_address(p) for p in model.parameters()}
    free = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    for names in (weights, tuple(name for name in weights if name in free)):
        for average in _candidates(model, names):
            if average.holder is validated:
                continue
            try:
                values = average.values()
                found = all(
                    isinstance(value, Tensor)
                    and _address(value) not in own
                    and same(value, validated[name])
                    for name, value in zip(names, values, strict=True)
                )
            except (KeyError, RuntimeError, TypeError, ValueError):
                continue  # of another form
            if found:
                return average
    return None


def _candidates(model: nn.Module, names: tuple[str, ...]) -> Iterator[_Average]:
    """Yield what might hold a tensor for each of ``names``."""
    if not names:
        return
    for held in living(dict):
        if len(held) >= len(names) and any(plain_name(str(key)) == names[0] for key in list(held)):
            yield _Average(held, names)
    for sequence in living(list):
        if len(sequence) == len(names) and isinstance(sequence[0], Tensor):
            yield _Average(sequence, names)
    for module in living(nn.Module):
        if type(module) is type(model) and module is not model:
            yield _Average(module, names)


@dataclass(frozen=True)
class _Way:
    """What became of an average in some steps.

    Attributes:
        steps: how many there were.
        handed: batches that each of them took.
        alignment: the cosine between its way and the one to the trained weights.
        left: the share of the distance that each step left.
    """

    steps: int
    handed: int
    alignment: float
    left: list[float]


def _followed(audit: Audit, average: _Average) -> _Way:
    """Take some steps, and more while the average stands still."""
    loop = audit.loop
    start = average.vector()
    left: list[float] = []
    handed = 1
    for batch in consecutive_batches(loop, _PATIENCE):
        audit.clock.check()
        old = average.vector()
        handed = max(handed, loop.step(batch).handed)
        now = average.vector()
        left.append(straight_share(old, now, _goal(loop, average)))
        if len(left) >= _STEPS and not torch.equal(now, start):
            break
    now = average.vector()
    aligned = cosine(now - start, _goal(loop, average) - start)
    return _Way(len(left), handed, aligned, left)


def _goal(loop: Loop, average: _Average) -> Tensor:
    held = values_of(loop.model, copy=False)
    return torch.cat([held[name].detach().double().flatten() for name in average.names])


def _told(
    loop: Loop, average: _Average, seen: tuple[_Interval, _Interval], way: _Way
) -> ValidatedWeights:
    first, second = seen
    statistics = [
        name
        for name in first.trained
        if name not in first.weights and not same(first.trained[name], second.trained[name])
    ]
    stale = [name for name in statistics if same(first.validated[name], second.validated[name])]
    stands = all(same(first.validated[name], second.validated[name]) for name in average.names)
    even = max(way.left) - min(way.left) <= _EVEN  # False where one is NaN
    return ValidatedWeights(
        held=type(average.holder).__name__,
        weights=len(average.names),
        alignment=way.alignment,
        stood=way.steps if stands else 0,
        decay=way.left[-1] if even else None,
        updates=planned_updates(loop, way.handed),
        remained=first.remained and second.remained,
        statistics=len(statistics),
        stale=len(stale),
    )


def _address(value: Tensor) -> int:
    try:
        return value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return id(value)  # a tensor that has no storage of its own
