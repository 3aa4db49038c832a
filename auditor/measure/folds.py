"""Cross-validation in a program's source: a network that goes from one fold into the next."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nnaudit.targets.source import Source, called, written

_SPLITTERS = re.compile(r"^(Repeated)?(Stratified)?(Group)?(KFold|ShuffleSplit)$")
"""Classes of scikit-learn that deal rows anew: in a TimeSeriesSplit, going on is no leak."""

_FRESH = re.compile(r"reset|init|load|copy|clone|restore|build|make|create", re.IGNORECASE)
"""Parts of names of what may give a network other weights, or another network."""

_ELSE = re.compile(r"load(er|_data)|dataset|optim|sched|tensor", re.IGNORECASE)
"""Parts of names of what makes something else."""


@dataclass(frozen=True)
class SharedByFolds:
    """A network that all folds train.

    Attributes:
        network: its name.
        made: the line before the loop over folds where it is made.
        loop: the line of that loop.
    """

    network: str
    made: int
    loop: int


def shared_by_folds(source: Source) -> tuple[SharedByFolds, ...]:
    """Return the networks of ``source`` that are made before a loop over folds and trained in it.

    Nothing is said where anything in the loop, or in a function of the file that it calls, may
    give the network its first weights back, and where the loop does not go through all folds.
    """
    functions = {function.name: function for function in source.find(ast.FunctionDef)}
    splitters = {
        written(target)
        for node in source.find(ast.Assign)
        if isinstance(node.value, ast.Call) and _SPLITTERS.match(called(node.value))
        for target in node.targets
    }
    found = []
    for loop in source.find(ast.For):
        if not _is_over_folds(loop, splitters) or _leaves_out(loop):
            continue
        calls = [node for node in ast.walk(loop) if isinstance(node, ast.Call)]
        entered = [functions[called(call)] for call in calls if called(call) in functions]
        inside = calls + [c for f in entered for c in ast.walk(f) if isinstance(c, ast.Call)]
        trains = any(called(call) in ("backward", "fit") for call in inside)
        names = {called(call) for call in inside} | set(_applied(inside))
        fresh = any(_FRESH.search(name) and not _ELSE.search(name) for name in names)
        if not trains or fresh:
            continue
        made = _made_before(source, loop)
        for name in sorted(set(_trained(calls, functions)) & made.keys()):
            found.append(SharedByFolds(name, made[name], loop.lineno))
    return tuple(found)


def _applied(calls: list[ast.Call]) -> Iterator[str]:
    """Yield the functions that are handed on: ``reset_weights`` of ``net.apply(reset_weights)``."""
    for call in calls:
        if called(call) == "apply":
            yield from map(written, call.args)


def _is_over_folds(loop: ast.For, splitters: set[str]) -> bool:
    for call in ast.walk(loop.iter):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            of = call.func.value
            direct = isinstance(of, ast.Call) and bool(_SPLITTERS.match(called(of)))
            if call.func.attr == "split" and (direct or written(of) in splitters):
                return True
    return False


def _leaves_out(loop: ast.For) -> bool:
    """Whether the loop leaves folds out: ``if fold != 0: continue``, ``break`` after the first."""
    found: list[ast.AST] = list(loop.body)
    while found:
        node = found.pop()
        if isinstance(node, (ast.Break, ast.Continue)):
            return True
        if isinstance(node, (ast.If, ast.With, ast.Try)):
            found += list(ast.iter_child_nodes(node))
    return False


def _made_before(source: Source, loop: ast.For) -> dict[str, int]:
    """Return the names that are given what a call makes, before ``loop`` alone, with the line."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef)
    around = (node for node in source.ancestors(loop) if isinstance(node, definitions))
    scope = next(around, source.tree)
    again = {
        each.id
        for node in ast.walk(loop)
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.For, ast.withitem))
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }
    return {
        target.id: node.lineno
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if node.lineno < loop.lineno
        for target in node.targets
        if isinstance(target, ast.Name) and target.id not in again
    }


def _trained(calls: list[ast.Call], functions: dict[str, ast.FunctionDef]) -> Iterator[str]:
    """Yield the names that are put into training mode, or handed to something that trains."""
    for call in calls:
        if called(call) == "train" and isinstance(call.func, ast.Attribute):
            yield written(call.func.value)
        elif called(call) in functions:
            function = functions[called(call)]
            inner = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            trained = {written(c.func.value) for c in inner
                       if called(c) == "train" and isinstance(c.func, ast.Attribute)}  # fmt: skip
            given = zip(function.args.args, call.args, strict=False)
            yield from (written(value) for name, value in given if name.arg in trained)
        elif called(call) == "fit" and call.args:
            yield written(call.args[0])
        elif called(call).endswith("Trainer"):
            yield from (written(k.value) for k in call.keywords if k.arg == "model")
