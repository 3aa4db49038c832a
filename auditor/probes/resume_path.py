"""What a script loads again where it goes on from a checkpoint of its own, read off its source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nnaudit.context import Audit, Probe
from nnaudit.loop.base import Loop
from nnaudit.measure.seeding import source_files
from nnaudit.probes.resumed_run import COUNTERS
from nnaudit.report import Location
from nnaudit.targets.source import Source, assigned, called, source_of, written

_NETWORKS = frozenset({"model", "net", "network", "module"})


@dataclass(frozen=True)
class ResumePath:
    """Where a script goes on counting epochs from a checkpoint, and what it leaves out.

    Attributes:
        location: the line that loads the state of the network.
        lost: ``the optimizer (Adam)``, ``the scheduler (StepLR)``: what is made anew.
        saved: of these, what the source takes the state of, as for a checkpoint.
    """

    location: Location
    lost: tuple[str, ...]
    saved: tuple[str, ...] = ()


class ResumePaths(Probe[ResumePath | None]):
    """The first file of the user's that resumes; None where none does."""

    def measure(self, audit: Audit) -> ResumePath | None:
        """Read the user's files."""
        found = (_resumed(audit.loop, source_of(file)) for file in source_files(audit.loop))
        return next((path for path in found if path is not None), None)


def _resumed(loop: Loop, source: Source) -> ResumePath | None:
    """Return how ``source`` resumes.

    It loads with torch.load, gives a network its state, and begins a ``range`` or a ``while`` with
    a counter that it reads off what was loaded. What it loads the best weights for, to test them,
    begins none.
    """
    restored = {
        _last(call.receiver): call for call in source.calls if call.name == "load_state_dict"
    }
    loads = any(call.name == "load" and call.receiver == "torch" for call in source.calls)
    if not restored or not loads or not _counters(source) & _starts(source):
        return None
    networks = {*_NETWORKS, *_names(loop, source, loop.models)}
    first = next((call for name, call in restored.items() if name in networks), None)
    if first is None:
        return None
    lost = list(_lost(loop, source, set(restored), networks))
    kept = {_last(call.receiver) for call in source.calls if call.name == "state_dict"}
    return ResumePath(
        Location(file=source.file, line=first.line),
        tuple(what for what, _ in lost),
        tuple(what for what, name in lost if name in kept),
    )


def _lost(
    loop: Loop, source: Source, restored: set[str], networks: set[str]
) -> Iterator[tuple[str, str]]:
    """Yield what the loop has and the script does not restore, and its variable.

    Under another name, as in a function that loads what it is given, it may be restored: then only
    a name that is used in both places says anything.
    """
    stateful = [o for o in loop.optimizers if _has_state(o)]
    names = {
        "optimizer": _names(loop, source, stateful),
        "scheduler": _names(
            loop, source, [s for s in loop.schedulers if not _told(loop, source, s)]
        ),
    }
    others = restored - networks
    consistent = any(name in others for each in names.values() for name in each)
    forwarded = set(_forwarded(source))
    for what, found in names.items():
        for name, thing in found.items():
            if name not in others | forwarded and (consistent or not others):
                yield f"the {what} ({type(thing).__name__})", name


def _has_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it remembers anything from step to step: plain gradient descent does not."""
    plain = type(optimizer) is torch.optim.SGD
    return not plain or any(group.get("momentum") for group in optimizer.param_groups)


def _told(loop: Loop, source: Source, scheduler: Any) -> bool:
    """Whether ``scheduler`` is made with the epoch at which it goes on."""
    place = loop.locate(scheduler)
    calls = source.calls_at(place.line) if place is not None else []
    return any(keyword.arg == "last_epoch" for call in calls for keyword in call.node.keywords)


def _forwarded(source: Source) -> Iterator[str]:
    """Yield the schedulers that are stepped to where they were.

    ``for _ in range(start_epoch): scheduler.step()``, or ``scheduler.step(epoch)``, which needs no
    state.
    """
    read = _counters(source)
    for call in source.calls:
        if call.name not in ("step", "step_update") or not call.receiver:
            continue
        loops = (node for node in source.ancestors(call.node) if isinstance(node, ast.For))
        bounds = [
            loop.iter.args[0]
            for loop in loops
            if isinstance(loop.iter, ast.Call) and called(loop.iter) == "range"
            if len(loop.iter.args) == 1
        ]
        if _named(bounds) & read or _named(call.node.args) & (read | COUNTERS):
            yield _last(call.receiver)


def _named(values: Iterable[ast.expr]) -> set[str]:
    """Return what ``values`` name, the last parts."""
    return {_last(written(node)) for value in values for node in ast.walk(value)}


def _names(loop: Loop, source: Source, things: Iterable[Any]) -> dict[str, Any]:
    """Return ``things`` by the variables that they are assigned to in ``source``."""
    found: dict[str, Any] = {}
    for thing in things:
        place = loop.locate(thing)
        if place is None or place.file != source.file:
            continue
        nodes = source.at(place.line, ast.Assign)
        if len(nodes) > 1:  # several on one line
            nodes = [n for n in nodes if _makes(n.value, type(thing).__name__)]
        for node in nodes:
            if len(node.targets) == 1 and (name := _last(written(node.targets[0]))).isidentifier():
                found[name] = thing
    return found


def _makes(value: ast.AST, name: str) -> bool:
    return isinstance(value, ast.Call) and called(value) == name


def _counters(source: Source) -> set[str]:
    """Return the variables that are assigned an epoch or a step from a dict."""
    return {
        _last(written(target))
        for node in source.find(ast.Assign)
        for each in node.targets
        for target, value in assigned(each, node.value)
        if any(_reads_counter(part) for part in ast.walk(value))
    }


def _reads_counter(node: ast.AST) -> bool:
    key: ast.AST | None = None
    if isinstance(node, ast.Subscript):
        key = node.slice
    elif isinstance(node, ast.Call) and called(node) == "get" and node.args:
        key = node.args[0]
    return isinstance(key, ast.Constant) and key.value in COUNTERS


def _starts(source: Source) -> set[str]:
    """Return the variables that a ``range`` is given, or that a ``while`` compares."""
    given = [each for call in source.calls if call.name == "range" for each in call.node.args]
    given += [node.test for node in source.find(ast.While) if isinstance(node.test, ast.Compare)]
    return {
        _last(written(part))
        for argument in given
        for part in ast.walk(argument)
        if isinstance(part, (ast.Name, ast.Attribute))
    }


def _last(name: str) -> str:
    return name.removesuffix(".module").rpartition(".")[2]
