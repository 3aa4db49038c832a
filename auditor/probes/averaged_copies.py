"""Networks that follow the one that is trained: moving averages, teachers, target networks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Loop
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.movement import same
from nnaudit.state.snapshot import Subjects, preserved

STEPS = 3

_WRAPPERS = ("module.", "_orig_mod.")

_RECOMPUTED = ("update_bn", "bn_update", "precise_bn")
"""Functions that compute the statistics of an average anew before it is used."""


@dataclass(frozen=True)
class AveragedCopy:
    """A network of the same make as a trained one, in no optimizer, whose weights follow it.

    Attributes:
        type: its class.
        source: the trained module's name within the model; empty for the model itself.
        weights: how many parameters it has, by tensors.
        alignment: the cosine between how it moved and the way to the trained weights.
        statistics: floating buffers that changed in the trained network.
        stale: those of them that are bit for bit what they were in the copy, an end of an epoch
            later.
        evaluated: it was called in eval mode between two epochs; None where no end of an epoch
            can be reached.
        recomputed: the program's text calls a function that computes the statistics anew.
    """

    type: str
    source: str
    weights: int
    alignment: float
    statistics: int
    stale: int
    evaluated: bool | None
    recomputed: bool


@dataclass
class _Pair:
    copy: nn.Module
    source: nn.Module
    name: str
    before: dict[str, Tensor]
    trained: dict[str, Tensor]
    calls: list[bool]


class AveragedCopies(Probe[tuple[AveragedCopy, ...]]):
    """Trains a few steps, ends the epoch, and compares each copy with what it follows."""

    def measure(self, audit: Audit) -> tuple[AveragedCopy, ...]:
        """Return the copies that move toward the trained network.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        pairs = list(_pairs(loop))
        if not pairs:
            return ()
        with ExitStack() as stack:
            stack.enter_context(preserved(Subjects(models=tuple(pair.copy for pair in pairs))))
            batch = None
            for batch in consecutive_batches(loop, STEPS):
                audit.clock.check()
                loop.step(batch)
            moved = [(pair, _alignment(pair)) for pair in pairs if _has_moved(pair)]
            if not moved:
                return ()
            for pair, _ in moved:
                stack.callback(pair.copy.register_forward_pre_hook(_listening(pair)).remove)
            audit.clock.check()
            ended = loop.next_epoch(batch) is not None
            recomputed = _recomputes(loop)
            return tuple(_judged(pair, alignment, ended, recomputed) for pair, alignment in moved)


def _pairs(loop: Loop) -> Iterator[_Pair]:
    """Yield networks of the make of a trained one, with statistics, that no optimizer trains."""
    trained = {id(p) for optimizer in loop.optimizers for p in parameters_of(optimizer)}
    sources: dict[Any, tuple[str, nn.Module]] = {}
    for name, module in loop.model.named_modules():
        parameters = [id(p) for p in module.parameters()]
        if parameters and trained.issuperset(parameters) and _statistics(module):
            sources.setdefault(_make(module), (name, module))
    if not sources:
        return
    taken: set[int] = set()
    # By type: some objects answer a question after their class with a warning.
    candidates = [each for each in gc.get_objects() if issubclass(type(each), nn.Module)]
    for module in sorted(candidates, key=lambda each: -sum(1 for _ in each.modules())):
        parameters = [id(p) for p in module.parameters()]
        if id(module) in taken or not parameters or not trained.isdisjoint(parameters):
            continue
        found = sources.get(_make(module))
        if found is not None:
            taken |= {id(inner) for inner in module.modules()}
            yield _Pair(module, found[1], found[0], _values(module), _values(found[1]), [])


def _make(module: nn.Module) -> Any:
    """What two networks of one make have in common: names and shapes of all that they hold."""
    return tuple((name, tuple(value.shape)) for name, value in _values(module, copy=False).items())


def _values(module: nn.Module, *, copy: bool = True) -> dict[str, Tensor]:
    """Return parameters and floating buffers by name, without the names of wrappers."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        _plain(name): value.detach().clone() if copy else value
        for name, value in named
        if value.is_floating_point()
    }


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _statistics(module: nn.Module) -> list[str]:
    return [_plain(name) for name, b in module.named_buffers() if b.is_floating_point()]


def _weights(module: nn.Module) -> list[str]:
    return [_plain(name) for name, _ in module.named_parameters()]


def _has_moved(pair: _Pair) -> bool:
    now = _values(pair.copy, copy=False)
    return any(not same(now[name], pair.before[name]) for name in _weights(pair.copy))


def _alignment(pair: _Pair) -> float:
    """Return the cosine between the copy's way and the one from it to the trained weights."""
    now, trained = _values(pair.copy), _values(pair.source)
    names = _weights(pair.copy)
    way = torch.cat([(now[n] - pair.before[n]).double().flatten() for n in names])
    toward = torch.cat([(trained[n] - pair.before[n]).double().flatten() for n in names])
    length = float(way.norm() * toward.norm())
    return float(way @ toward) / length if length > 0.0 else 0.0


def _listening(pair: _Pair) -> Any:
    def called(module: nn.Module, args: Any) -> None:
        pair.calls.append(not module.training)

    return called


def _recomputes(loop: Loop) -> bool:
    parts = ("model", "training_step", "optimizer", "train_loader")
    files = {place.file for part in parts if (place := loop.locate(part)) is not None}
    texts = [Path(file).read_text(errors="replace") for file in files if Path(file).is_file()]
    return any(name in text for name in _RECOMPUTED for text in texts)


def _judged(pair: _Pair, alignment: float, ended: bool, recomputed: bool) -> AveragedCopy:
    now, trained = _values(pair.copy), _values(pair.source)
    moving = [n for n in _statistics(pair.source) if not same(trained[n], pair.trained[n])]
    stale = [n for n in moving if same(now[n], pair.before[n])]
    return AveragedCopy(
        type=type(pair.copy).__name__,
        source=pair.name,
        weights=len(_weights(pair.copy)),
        alignment=alignment,
        statistics=len(moving),
        stale=len(stale),
        evaluated=any(pair.calls) if ended else None,
        recomputed=recomputed,
    )
