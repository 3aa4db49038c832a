"""Where a program's source keeps the best network by a second name for the one it trains."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nnaudit.report import Location
from nnaudit.targets.source import Source, assigned, called, written

_OF_NETWORKS = frozenset({"train", "eval", "parameters", "state_dict", "load_state_dict"})
"""Methods by whose calls a variable is known to hold a network."""

_LOOPS = (ast.For, ast.AsyncFor, ast.While)

_ENDS = (ast.Break, ast.Return, ast.Raise)


@dataclass(frozen=True)
class KeptNetwork:
    """A statement ``best_model = model``, after which ``model`` is trained further.

    Attributes:
        name: what is meant to keep the best network.
        network: the variable that holds the one that is trained.
        location: of the statement.
        used: the first line outside of the condition that reads ``name``; 0 where none does.
    """

    name: str
    network: str
    location: Location
    used: int


def kept_networks(source: Source) -> tuple[KeptNetwork, ...]:
    """Return where ``source`` binds a name with "best" to the network that it goes on training.

    The statement is under a condition within a loop that does not make the network anew, itself or
    in a function of the file that it calls (one for each fold or setting is kept by its name
    alone), and does not leave the loop.
    """
    return tuple(kept for node in source.find(ast.If) for kept in _kept_in(source, node))


def _kept_in(source: Source, condition: ast.If) -> Iterator[KeptNetwork]:
    loops = [loop for loop in _ancestors_in_function(source, condition) if isinstance(loop, _LOOPS)]
    if not loops or any(isinstance(inner, _ENDS) for inner in condition.body):
        return
    for statement in condition.body:
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            continue
        if isinstance(statement.targets[0], ast.Subscript):  # one of several that are kept
            continue
        for target, value in assigned(statement.targets[0], statement.value):
            if not isinstance(value, (ast.Name, ast.Attribute)) or isinstance(target, ast.Tuple):
                continue
            name, network = written(target), written(value)
            if "best" not in name.lower() or not _is_network(source, network):
                continue
            if any(_bound_in(part) & _leading_to(network) for part in _run_by(source, loops)):
                continue
            used = _first_use(source, name, condition)
            where = Location(file=source.file, line=statement.lineno)
            yield KeptNetwork(name, network, where, used)


def _ancestors_in_function(source: Source, node: ast.AST) -> Iterator[ast.AST]:
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        yield ancestor


def _is_network(source: Source, name: str) -> bool:
    return any(call.receiver == name and call.name in _OF_NETWORKS for call in source.calls)


def _run_by(source: Source, loops: Iterable[ast.AST]) -> list[ast.AST]:
    """Return ``loops`` and the functions of the file that they call, or that those call."""
    functions = {function.name: function for function in source.find(ast.FunctionDef)}
    run: list[ast.AST] = list(loops)
    for part in run:  # it grows
        names = {called(call) for call in ast.walk(part) if isinstance(call, ast.Call)}
        run += [functions.pop(name) for name in sorted(names & functions.keys())]
    return run


def _bound_in(part: ast.AST) -> set[str]:
    """Return the names that a loop binds, by whatever statement, or a function beyond its end."""
    stored = [
        node
        for node in ast.walk(part)
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store)
    ]
    if isinstance(part, ast.FunctionDef):
        shared = {n for node in ast.walk(part) if isinstance(node, ast.Global) for n in node.names}
        stored = [n for n in stored if isinstance(n, ast.Attribute) or n.id in shared]
    return {written(node) for node in stored}


def _leading_to(name: str) -> set[str]:
    """Return ``trainer`` and ``trainer.model`` for ``trainer.model``."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def _first_use(source: Source, name: str, condition: ast.If) -> int:
    inside = set(ast.walk(condition))
    lines = [
        node.lineno
        for node in source.nodes
        if isinstance(node, (ast.Name, ast.Attribute))
        and isinstance(node.ctx, ast.Load)
        and node not in inside
        and written(node) == name
    ]
    return min((line for line in lines if line > condition.lineno), default=min(lines, default=0))
