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
from nnaudit.targets.source import Call, Source, assigned, called, source_of, written

_NETWORKS = frozenset({"model", "net", "network", "module"})

_BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.For, ast.While)

_GIVEN = ("parameters", "named_parameters")

_NAMES = (ast.Name, ast.Attribute)


@dataclass(frozen=True)
class ResumePath:
    """Where a script goes on counting epochs from a checkpoint, and what it leaves out.

    Attributes:
        location: the line that loads the state of the network.
        lost: ``the optimizer (Adam)``, ``the scheduler (StepLR)``: what is made anew.
        saved: of these, what the source takes the state of, as for a checkpoint.
        remade: of these, what gets its state back and is made anew afterwards.
        orphaned: the line that makes the network anew after its optimizer, which keeps the
            parameters of the one before; None where none does.
    """

    location: Location
    lost: tuple[str, ...]
    saved: tuple[str, ...] = ()
    remade: tuple[str, ...] = ()
    orphaned: Location | None = None


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
    remade = {name for name, call in restored.items() if _is_remade(source, call, name)}
    lost = list(_lost(loop, source, set(restored) - remade, networks))
    kept = {_last(call.receiver) for call in source.calls if call.name == "state_dict"}
    orphaned = _orphaned(loop, source, first, _last(first.receiver))
    return ResumePath(
        Location(file=source.file, line=first.line),
        tuple(what for what, _ in lost),
        tuple(what for what, name in lost if name in kept),
        tuple(what for what, name in lost if name in remade),
        None if orphaned is None else Location(file=source.file, line=orphaned),
    )


def _is_remade(source: Source, load: Call, name: str) -> bool:
    """Whether a statement after ``name.load_state_dict(...)``, beside it, makes ``name`` anew."""
    return any(_makes_anew(each, name) for each in _beside(source, load, later=True))


def _orphaned(loop: Loop, source: Source, load: Call, name: str) -> int | None:
    """Return the line that makes the network ``name`` anew before its state is loaded.

    The optimizer that trains was given the parameters of the network of that name before, in the
    same function, outside of the branch that resumes.
    """
    lines = [each.lineno for each in _beside(source, load) if _makes_anew(each, name)]
    around = source.ancestors(load.node)
    branch = next((each for each in around if isinstance(each, _BLOCKS)), None)
    if not lines or not isinstance(branch, ast.If):
        return None
    function = source.scope_of(load.node)
    for optimizer in loop.optimizers:
        place = loop.locate(optimizer)
        if place is None or place.file != source.file or place.line >= branch.lineno:
            return None
        given = [
            node
            for node in source.at(place.line, ast.Attribute)
            if node.attr in _GIVEN and _last(written(node.value)) == name
            if source.scope_of(node) is function
        ]
        if not given:
            return None
    return lines[-1] if loop.optimizers else None


def _beside(source: Source, call: Call, *, later: bool = False) -> list[ast.stmt]:
    """Return the statements before the one of ``call`` in its block; those after it, or those."""
    inner: ast.AST = call.node
    for outer in source.ancestors(call.node):
        for block in (getattr(outer, "body", None), getattr(outer, "orelse", None)):
            if isinstance(block, list) and inner in block:
                place = block.index(inner)
                return block[place + 1 :] if later else block[:place]
        inner = outer
    return []


def _makes_anew(statement: ast.stmt, name: str) -> bool:
    """Whether ``statement`` gives ``name`` what a call returns that is not given ``name``."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return False
    inside = {_last(written(e)) for e in ast.walk(statement.value) if isinstance(e, _NAMES)}
    return [_last(written(each)) for each in statement.targets] == [name] and name not in inside


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
