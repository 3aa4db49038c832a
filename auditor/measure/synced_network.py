"""Target networks that a program's source copies once and never again."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nnaudit.report import Location
from nnaudit.targets.source import Source, called, written

_TARGET = re.compile(r"(^|_)(target|tgt)|(target|tgt)($|_)", re.IGNORECASE)

_HARMLESS = frozenset(
    {"bfloat16", "cpu", "cuda", "double", "eval", "float", "half", "requires_grad_", "to", "train"}
)
"""Methods of a network that leave its weights as they are, or round them."""

_WEIGHTS = frozenset({"buffers", "named_buffers", "named_parameters", "parameters"})

_UPDATES = re.compile(r"update|copy|sync|load|soft|step|state_dict|apply")
"""Parts of the names of methods that may."""

_ONCE = frozenset({"", "__init__", "build", "main", "setup"})
"""Functions that run once: a copy that is made in them is the first one."""


@dataclass(frozen=True)
class UnsyncedNetwork:
    """A network named as a target that is made as a copy, and that no statement updates.

    Attributes:
        name: of the variable or attribute.
        location: where the copy is made, or where it is to be updated.
        period: the optimizer steps after which a statement is to update it; 0 where none does.
    """

    name: str
    location: Location
    period: int = 0


def unsynced_networks(source: Source) -> tuple[UnsyncedNetwork, ...]:
    """Return the target networks of ``source`` that stay what they were copied from at first.

    Whatever is not known to leave the weights alone (given to a function, say) may update them.
    """
    made = dict(_copies(source))
    return tuple(
        UnsyncedNetwork(name, Location(file=source.file, line=line))
        for name, line in made.items()
        if _TARGET.search(name) and not any(_may_update(source, use) for use in _uses(source, name))
    )


def periodic_networks(source: Source) -> Iterator[UnsyncedNetwork]:
    """Yield the target networks that ``source`` updates with every so many optimizer steps.

    ``if updates % 50 == 0``, beside a step of an optimizer and ``updates += 1``: whether that ever
    comes depends on where the counter begins anew.
    """
    made = {name for name, _ in _copies(source) if _TARGET.search(name)}
    for node in source.find(ast.If):
        counter, period = _every(source, node.test)
        beside = next(
            (
                body
                for ancestor in source.ancestors(node)
                for body in (getattr(ancestor, "body", []), getattr(ancestor, "orelse", []))
                if isinstance(body, list) and node in body
            ),
            [],
        )
        counts = any(
            isinstance(each, ast.AugAssign) and written(each.target) == counter for each in beside
        )
        steps = any(
            isinstance(each, ast.Expr)
            and isinstance(each.value, ast.Call)
            and called(each.value) == "step"
            for each in beside
        )
        updated = {_last(each) for part in node.body for each in ast.walk(part)} & made
        if period and counts and steps:
            for name in sorted(updated):
                where = Location(file=source.file, line=node.lineno)
                yield UnsyncedNetwork(name, where, period)


def _every(source: Source, test: ast.expr) -> tuple[str, int]:
    """Return the counter and the period of ``counter % period == 0``; 0 for anything else."""
    if not isinstance(test, ast.Compare) or not isinstance(test.left, ast.BinOp):
        return "", 0
    zero = test.comparators[0]
    is_zero = isinstance(zero, ast.Constant) and zero.value == 0
    if not isinstance(test.left.op, ast.Mod) or not isinstance(test.ops[0], ast.Eq) or not is_zero:
        return "", 0
    return written(test.left.left), _number(source, test.left.right)


def _number(source: Source, node: ast.expr) -> int:
    """Return the integer that is written, or that its name is given as the only one; else 0."""
    if isinstance(node, ast.Name):
        given = [
            each.value
            for each in source.find(ast.Assign)
            if any(written(target) == node.id for target in each.targets)
        ]
        return _number(source, given[0]) if len(given) == 1 and given[0] is not node else 0
    value = node.value if isinstance(node, ast.Constant) else 0
    return value if type(value) is int else 0


def _copies(source: Source) -> Iterator[tuple[str, int]]:
    """Yield the names that are given a copy of a network, and the lines."""
    for node in source.find(ast.Assign):
        calls = [each for each in ast.walk(node.value) if isinstance(each, ast.Call)]
        if any(called(call) == "deepcopy" for call in calls):
            yield from ((name, node.lineno) for name in map(_last, node.targets) if name)
    for call in source.calls:
        if call.name == "load_state_dict" and call.receiver:
            yield call.receiver.rpartition(".")[2], call.line


def _last(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _uses(source: Source, name: str) -> Iterator[ast.expr]:
    for node in source.nodes:
        if isinstance(node, (ast.Name, ast.Attribute)) and _last(node) == name:
            yield node


def _may_update(source: Source, use: ast.expr) -> bool:
    """Whether the weights of what is used here may be set to others by it."""
    parent = next(source.ancestors(use), None)
    if isinstance(getattr(use, "ctx", None), ast.Store):
        return _is_repeated(source, use)
    if isinstance(parent, ast.Call):
        return parent.func is not use and called(parent) not in ("deepcopy", "print")
    return not isinstance(parent, ast.Attribute) or _method_updates(source, parent)


def _method_updates(source: Source, method: ast.Attribute) -> bool:
    """Whether ``network.method`` may set the weights to others."""
    if method.attr in _WEIGHTS:
        loops = (each for each in source.ancestors(method) if isinstance(each, ast.For))
        return not _only_freezes(next(loops, None))
    if method.attr == "load_state_dict":
        return _is_repeated(source, method)
    call = next(source.ancestors(method), None)
    is_called = isinstance(call, ast.Call) and call.func is method
    return method.attr not in _HARMLESS and (
        not is_called or _UPDATES.search(method.attr) is not None
    )


def _is_repeated(source: Source, node: ast.expr) -> bool:
    """Whether it lies in a loop, or in a function that may be called again."""
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, (ast.For, ast.AsyncFor, ast.While)):
            return True
        if isinstance(ancestor, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return ancestor.name not in _ONCE
    return False


def _only_freezes(loop: ast.For | None) -> bool:
    """Whether ``loop`` does nothing but set ``requires_grad`` of what it goes through."""
    return loop is not None and all(
        (
            isinstance(each, ast.Assign)
            and all(_last(target) == "requires_grad" for target in each.targets)
        )
        or (
            isinstance(each, ast.Expr)
            and isinstance(each.value, ast.Call)
            and called(each.value) == "requires_grad_"
        )
        for each in loop.body
    )
