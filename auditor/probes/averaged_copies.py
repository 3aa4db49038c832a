"""Networks that follow the one that is trained: moving averages, teachers, target networks."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.consecutive import batches_per_epoch, consecutive_batches
from nnaudit.measure.living import living
from nnaudit.measure.movement import same
from nnaudit.measure.seeding import source_files
from nnaudit.measure.synced_network import (
    UnsyncedNetwork,
    idle_updates,
    periodic_networks,
    unsynced_networks,
)
from nnaudit.probes.reference_networks import modal_layers
from nnaudit.state.snapshot import Subjects, preserved
from nnaudit.targets import batch as batches
from nnaudit.targets.source import source_of

STEPS = 3

_FADING = 60
"""Steps at most to see what becomes of an average that keeps less of itself in every step."""

_OPPOSITE = -0.99
"""Cosine with the way to the trained weights below which a copy moves away from them."""

_SEVERAL = 8
"""Numbers below which a direction says little."""

_PATIENCE = 150
"""Steps after which a copy that is to follow has followed: libraries update one every 10 or 32."""

_ENOUGH = 40
"""Steps that are enough where they take all of the time: more than 32."""

_SECONDS = 20.0
"""Time for these; three times as much where it is not enough for :data:`_ENOUGH`."""

_CLOSE = 0.1
"""Distance, relative to the weights, below which one network was copied from the other.

Two random initialisations are about 1.4 apart; the steps before the audit move weights by less.
"""

_WRAPPERS = ("module.", "_orig_mod.")

_RECOMPUTED = ("update_bn", "bn_update", "precise_bn")
"""Functions that compute the statistics of an average anew before it is used."""

_IMPORT = re.compile(r"\s*(from|import)\s")


@dataclass(frozen=True)
class AveragedCopy:
    """A network of the same make as a trained one, in no optimizer, whose weights follow it.

    Attributes:
        type: its class.
        source: the trained module's name within the model; empty for the model itself.
        weights: how many parameters it has, by tensors.
        alignment: the cosine between how it moved and the way to the trained weights, in all steps
            together or in each of them, where that is higher; 0 where it has not moved.
        statistics: floating buffers that changed in the trained network.
        stale: those of them that are bit for bit what they were in the copy, an end of an epoch
            later.
        evaluated: it was called in eval mode between two epochs; None where no end of an epoch
            can be reached.
        recomputed: the program's text calls a function that computes the statistics anew.
        alone: it was evaluated between two epochs, and the trained network was not.
        stood: how many steps it stood still, bit for bit; 0 where it has moved.
        decay: the share of its distance to the trained weights that each step left, where that was
            the same in all steps; None where it was not.
        by_torch: it is torch's ``AveragedModel``, made without ``use_buffers``: an average that
            leaves the statistics, whenever its first update comes.
        updates: optimizer steps of the whole run; 0 where that is not known.
        moved: its weights changed in the steps that were taken.
        awake: dropouts and normalisations in it, all of them in train mode, when it was called
            with a validation batch, without gradients; 0 where it was called in eval mode.
        behind: weights that stood still, bit for bit, while others of the copy moved and the
            trained ones went so far that these would have shown it; of modules that were called.
        unsynced: it stands still, the steps of training call it, and this is the target network
            that the source copies once and never again, or after fewer steps than were taken.
        away: every step moved it straight away from the trained weights.
    """

    type: str
    source: str
    weights: int
    alignment: float
    statistics: int
    stale: int
    evaluated: bool | None
    recomputed: bool
    alone: bool = False
    stood: int = 0
    decay: float | None = None
    by_torch: bool = False
    updates: int = 0
    moved: bool = True
    awake: int = 0
    behind: tuple[str, ...] = ()
    unsynced: UnsyncedNetwork | None = None
    away: bool = False


@dataclass
class Pair:
    """A copy and what it may follow.

    Attributes:
        before, trained: what both held at first.
        calls, others: of the copy and of the trained network: whether they, or parts of them, were
            in eval mode, for each call that is none of training.
        called: names of the copy's modules that ran.
        inputs: copies of the tensors that the copy was first called with in train mode, without
            gradients, after these were forgotten.
        left: the share of the distance that each step left.
        headings: for each step that moved the copy, the cosine between that and the way to the
            trained weights, after the step or before it.
    """

    copy: nn.Module
    source: nn.Module
    name: str
    before: dict[str, Tensor]
    trained: dict[str, Tensor]
    calls: list[bool] = field(default_factory=list)
    others: list[bool] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    inputs: list[Tensor] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    headings: list[float] = field(default_factory=list)


class AveragedCopies(Probe[tuple[AveragedCopy, ...]]):
    """Trains a few steps, ends the epoch, and compares each copy with what it follows."""

    def measure(self, audit: Audit) -> tuple[AveragedCopy, ...]:
        """Return the copies that move, and those that are evaluated in the place of the network.

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
            handed = 1
            for taken, batch in enumerate(consecutive_batches(loop, _FADING), 1):
                audit.clock.check()
                was = [both_of(pair) for pair in pairs]
                handed = max(handed, loop.step(batch).handed)
                for pair, (old, trained) in zip(pairs, was, strict=True):
                    pair.left.append(_left(pair, old))
                    pair.headings += headings(pair, old, trained)
                if taken >= STEPS and not any(_fades(pair.left) for pair in pairs):
                    break
            for pair in pairs:
                for network, calls in ((pair.copy, pair.calls), (pair.source, pair.others)):
                    for module in _hookable(network):  # a part may be called by itself
                        stack.callback(module.register_forward_pre_hook(_listening(calls)).remove)
                for name, module in pair.copy.named_modules():
                    if not isinstance(module, torch.jit.ScriptModule):
                        hook = module.register_forward_pre_hook(_naming(pair.called, name))
                        stack.callback(hook.remove)
                if not isinstance(pair.copy, torch.jit.ScriptModule):
                    hook = pair.copy.register_forward_pre_hook(_keeping(pair.inputs))
                    stack.callback(hook.remove)
            loop.step(batch)
            within = [(len(pair.calls), len(pair.others)) for pair in pairs]
            for pair in pairs:
                pair.calls.clear()
                pair.others.clear()
                pair.inputs.clear()
            audit.clock.check()
            ended = loop.next_epoch(batch) is not None
            recomputed = _recomputes(loop)
            found = [
                _judged(pair, counts, ended=ended, recomputed=recomputed)
                for pair, counts in zip(pairs, within, strict=True)
            ]
            updates = planned_updates(loop, handed)
            found = [
                replace(each, updates=updates, awake=_awake(loop, pair) if ended else 0)
                for each, pair in zip(found, pairs, strict=True)
            ]
            called = [calls > 0 for calls, _ in within]
            return tuple(_followed(audit, found, pairs, called))


def planned_updates(loop: Loop, handed: int) -> int:
    """Return the optimizer steps of the whole run, of ``handed`` batches each; 0 where unknown."""
    epochs = loop.counted_epochs or loop.planned_epochs
    return epochs * batches_per_epoch(loop) // handed


def _followed(
    audit: Audit, found: list[AveragedCopy], pairs: list[Pair], called: list[bool]
) -> Iterator[AveragedCopy]:
    """Yield the copies that have moved, and those that stand still where the network should be.

    These are given time: an average may be updated every so many steps. ``called`` says of each
    copy whether a step of training calls it.
    """
    for copy, pair, in_steps in zip(found, pairs, called, strict=True):
        if copy.moved or copy.by_torch:
            yield copy
        elif in_steps and (unsynced := _unsynced(audit, pair)) is not None:
            yield replace(copy, unsynced=unsynced)
        elif copy.alone and _is_close(pair) and (stood := _stands(audit, pair)):
            yield replace(copy, stood=stood)
        elif copy.awake:
            yield copy


def _unsynced(audit: Audit, pair: Pair) -> UnsyncedNetwork | None:
    """Return the network that the source never updates, or would have by now, or means to."""
    sources = [source_of(file) for file in source_files(audit.loop)]
    never = [network for source in sources for network in unsynced_networks(source)]
    if never:
        return never[0]
    due = [network for source in sources for network in periodic_networks(source)]
    soon = [network for network in due if 2 * network.period < _PATIENCE]
    idle = [] if due or not _is_close(pair) else list(idle_updates(sources))
    for network in soon[:1] or idle[:1]:
        if _stands(audit, pair) > 2 * network.period:
            return network
    return None


def _stands(audit: Audit, pair: Pair) -> int:
    """Return for how many steps the copy stands still; 0 where it moves, or they are too slow."""
    begun = time.monotonic()
    for taken, batch in enumerate(consecutive_batches(audit.loop, _PATIENCE), 1):
        audit.clock.check()
        audit.loop.step(batch)
        if taken % 10 == 0 and _has_moved(pair):
            return 0
        spent = time.monotonic() - begun
        if spent > _SECONDS and (taken >= _ENOUGH or spent > 3 * _SECONDS):
            return taken + STEPS if taken >= _ENOUGH and not _has_moved(pair) else 0
    return 0 if _has_moved(pair) else _PATIENCE + STEPS


def _pairs(loop: Loop) -> Iterator[Pair]:
    """Yield networks of the make of a trained one that no optimizer trains."""
    trained = {id(p) for optimizer in loop.optimizers for p in parameters_of(optimizer)}
    sources: dict[Any, tuple[str, nn.Module]] = {}
    whole: list[str] = []
    for name, module in loop.model.named_modules():
        parameters = [id(p) for p in module.parameters()]
        if not parameters or not trained.issuperset(parameters):
            continue
        outermost = not any(name.startswith(f"{each}.") or not each for each in whole)
        if outermost:
            whole.append(name)
        # A part of a trained network is told from any other layer by its statistics alone.
        if outermost or _statistics(module):
            sources.setdefault(_make(module), (name, module))
    if not sources:
        return
    taken: set[int] = set()
    for module in sorted(living(nn.Module), key=lambda each: -sum(1 for _ in each.modules())):
        parameters = [id(p) for p in module.parameters()]
        if id(module) in taken or not parameters or not trained.isdisjoint(parameters):
            continue
        found = sources.get(_make(module))
        if found is not None:
            taken |= {id(inner) for inner in module.modules()}
            yield Pair(module, found[1], found[0], values_of(module), values_of(found[1]))


def _make(module: nn.Module) -> Any:
    """What two networks of one make have in common: names and shapes of all that they hold."""
    return tuple(
        (name, tuple(value.shape)) for name, value in values_of(module, copy=False).items()
    )


def values_of(module: nn.Module, *, copy: bool = True) -> dict[str, Tensor]:
    """Return parameters and floating buffers by name, without the names of wrappers."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        plain_name(name): value.detach().clone() if copy else value
        for name, value in named
        if not is_lazy(value) and value.is_floating_point()
    }


def plain_name(name: str) -> str:
    """Return the name of a parameter or buffer without those of wrappers before it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _statistics(module: nn.Module) -> list[str]:
    named = module.named_buffers()
    return [plain_name(n) for n, b in named if not is_lazy(b) and b.is_floating_point()]


def _weights(module: nn.Module) -> list[str]:
    named = module.named_parameters()
    return [plain_name(n) for n, p in named if not is_lazy(p) and p.is_floating_point()]


def _has_moved(pair: Pair) -> bool:
    now = values_of(pair.copy, copy=False)
    return any(not same(now[name], pair.before[name]) for name in _weights(pair.copy))


def both_of(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return the weights of the copy, and of what it may follow."""
    names = _weights(pair.copy)
    return _vector(values_of(pair.copy), names), _vector(values_of(pair.source), names)


def alignment_of(pair: Pair) -> float:
    """Return the cosine between the copy's way and the one from it to the trained weights.

    Where the trained weights turn from step to step, an average is far from all of its way: it
    heads for them in each step.
    """
    names = _weights(pair.copy)
    now, trained = both_of(pair)
    start = _vector(pair.before, names)
    whole = cosine(now - start, trained - start)
    return max(whole, min(pair.headings, default=0.0))


def headings(pair: Pair, old: Tensor, trained: Tensor) -> list[float]:
    """Return the cosine between the copy's step and the way to the trained weights, if it moved.

    ``old`` and ``trained`` are both before the step: an average may be updated before the optimizer
    steps, or after it. A way that is straight back counts, or else the more forward one.
    """
    now, after = both_of(pair)
    if same(now, old):
        return []
    found = [cosine(now - old, toward - old) for toward in (trained, after)]
    back = min(found) < _OPPOSITE and max(found) <= 0.0
    return [min(found) if back else max(found)]


def cosine(way: Tensor, goal: Tensor) -> float:
    """Return the cosine of two vectors over the elements that ``way`` has; 0 where one is zero.

    A copy that follows with some of its weights alone heads for the trained ones with these.
    """
    toward = goal[way != 0.0]
    length = float(way.norm() * toward.norm())
    return float(way @ goal) / length if length > 0.0 else 0.0


def _hookable(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of ``network`` that take hooks: not those that torch.jit has compiled."""
    for module in network.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield module


def _vector(values: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([values[name].double().flatten() for name in names])


def _is_close(pair: Pair) -> bool:
    """Whether the one was made as a copy of the other."""
    names = _weights(pair.copy)
    copy, trained = _vector(pair.before, names), _vector(pair.trained, names)
    return float((copy - trained).norm()) < _CLOSE * float(copy.norm())


def _left(pair: Pair, old: Tensor) -> float:
    """Return the share of the distance to the trained weights that a step has left.

    NaN where the copy has not moved straight toward them.
    """
    now, trained = both_of(pair)
    return straight_share(old, now, trained)


def straight_share(old: Tensor, now: Tensor, goal: Tensor) -> float:
    """Return the share of the way from ``old`` to ``goal`` that is left at ``now``.

    NaN where ``now`` is not on the straight line between the two, or there is no way to go.
    """
    before, after = old - goal, now - goal
    size = float(before @ before)
    if size == 0.0:
        return math.nan
    share = float(after @ before) / size
    aside = float((after - share * before).norm()) / math.sqrt(size)
    return share if aside < 0.01 else math.nan


def _decay(left: list[float]) -> float | None:
    """Return the share that each of the last steps left; None where it rises, as in a warm-up."""
    last = left[-STEPS:]
    if not last or not all(map(math.isfinite, last)) or max(last) - min(last) > 0.01:
        return None
    return last[-1]


def _fades(left: list[float]) -> bool:
    """Whether each of the last steps left less of the average than the one before, but some.

    A warm-up lets an average keep more in every step; with the two factors exchanged it is less.
    """
    last = left[-STEPS:]
    falling = all(a - b > 1e-4 for a, b in pairwise(last))  # False where one is NaN
    return falling and last[-1] > 0.01 and _decay(left) is None


def _is_away(pair: Pair) -> bool:
    """Whether every step moved the copy, and straight away from the trained weights."""
    steady = len(pair.headings) == len(pair.left) and max(pair.headings, default=0.0) < _OPPOSITE
    return steady and sum(pair.before[name].numel() for name in _weights(pair.copy)) >= _SEVERAL


def _listening(calls: list[bool]) -> Any:
    def called(module: nn.Module, args: Any) -> None:
        if not (module.training and torch.is_grad_enabled()):
            calls.append(not module.training)

    return called


def _naming(called: set[str], name: str) -> Any:
    def note(module: nn.Module, args: Any) -> None:
        called.add(plain_name(name))

    return note


def _behind(pair: Pair) -> tuple[str, ...]:
    """Return the weights that stand still while the copy follows with others.

    One whose source is nearer than what would change it by more than rounding may have followed,
    too, and so may one of a module that nothing calls.
    """
    now, trained = values_of(pair.copy), values_of(pair.source)
    names = _weights(pair.copy)
    moved = [name for name in names if not same(now[name], pair.before[name])]
    still = [name for name in names if name not in moved and now[name].numel()]
    if not moved or not still:
        return ()
    gone = _vector(now, moved) - _vector(pair.before, moved)
    way = _vector(trained, moved) - _vector(pair.before, moved)
    share = float(gone @ way) / max(float(way @ way), 1e-30)
    found = []
    for name in still:
        rounding = torch.finfo(now[name].dtype).eps * float(now[name].abs().max())
        gap = (trained[name] - now[name]).abs().max()
        follows = same(trained[name], pair.trained[name]) or share * float(gap) < 32 * rounding
        if not follows and name.rpartition(".")[0] in pair.called:
            found.append(name)
    return tuple(found)


def _keeping(inputs: list[Tensor]) -> Any:
    """Return a hook that keeps what a network is first called with in train mode, no gradients."""

    def called(module: nn.Module, args: Any) -> None:
        if module.training and not torch.is_grad_enabled() and not inputs:
            inputs.extend(tensor.detach().clone() for _, tensor in batches.tensors(args))

    return called


def _awake(loop: Loop, pair: Pair) -> int:
    """Return how many layers of the copy saw a validation batch in train mode: all, or 0.

    Where its statistics are recomputed it sees batches of training.
    """
    layers = list(modal_layers(pair.copy))
    if any(pair.calls) or not pair.inputs or not all(layer.training for layer in layers):
        return 0
    if loop.lacks(Needs.VAL_LOADER):
        return 0
    held = islice(loop.val_batches(), 1)
    seen = any(batches.paths_of(batch, pair.inputs[0]) for batch in held)
    return len(layers) if seen else 0


def _recomputes(loop: Loop) -> bool:
    parts = ("model", "training_step", "optimizer", "train_loader")
    files = {place.file for part in parts if (place := loop.locate(part)) is not None}
    texts = [Path(file).read_text(errors="replace") for file in files if Path(file).is_file()]
    return any(map(recomputes, texts))


def recomputes(text: str) -> bool:
    """Whether source uses a function that computes statistics anew: an import alone is no use."""
    lines = (line for line in text.splitlines() if not _IMPORT.match(line) or " as " in line)
    return any(name in line for line in lines for name in _RECOMPUTED)


def _judged(pair: Pair, within: tuple[int, int], *, ended: bool, recomputed: bool) -> AveragedCopy:
    """Say what became of a copy; ``within`` are the calls of both in a step of training."""
    now, trained = values_of(pair.copy), values_of(pair.source)
    moving = [n for n in _statistics(pair.source) if not same(trained[n], pair.trained[n])]
    stale = [n for n in moving if same(now[n], pair.before[n])]
    evaluated = any(pair.calls) and len(pair.calls) > within[0]
    return AveragedCopy(
        type=type(pair.copy).__name__,
        source=pair.name,
        weights=len(_weights(pair.copy)),
        alignment=alignment_of(pair),
        statistics=len(moving),
        stale=len(stale),
        evaluated=evaluated if ended else None,
        recomputed=recomputed,
        alone=ended and evaluated and len(pair.others) <= within[1],
        decay=_decay(pair.left),
        by_torch=isinstance(pair.copy, AveragedModel) and not pair.copy.use_buffers,
        moved=_has_moved(pair),
        behind=_behind(pair),
        away=_is_away(pair),
    )
