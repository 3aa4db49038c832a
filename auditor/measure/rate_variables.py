"""Learning rates that a program's source changes in a variable which no optimizer reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nnaudit.report import Location
from nnaudit.targets.source import Source, called, written

_RATE = re.compile(r"(^|_)(lr|learning_rate|eta)$", re.IGNORECASE)

_SHOWS = re.compile(r"^(print|format|info|debug|warning|write|log|log_\w+|add_scalar)$")
"""Functions that show a number and do nothing else with it."""

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class UnreadRate:
    """A statement that changes a learning rate which is only shown afterwards.

    Attributes:
        name: the variable's.
        text: the statement.
        location: its line.
    """

    name: str
    text: str
    location: Location


def unread_rates(sources: Sequence[Source]) -> Iterator[UnreadRate]:
    """Yield the statements that lower or raise a rate within a loop, and only there.

    ``lr *= 0.1``, where nothing reads ``lr`` within or after the loop, but to show it, and no line
    of ``sources`` mentions the groups in which an optimizer keeps its rates.
    """
    if any("param_groups" in source.text for source in sources):
        return
    for source in sources:
        for node in source.find(ast.stmt):
            name = _changed(node)
            if name is None:
                continue
            loops = [e for e in source.ancestors(node) if isinstance(e, (ast.For, ast.While))]
            if loops and not any(_reads(source, node, loops[-1], name)):
                where = Location(file=source.file, line=node.lineno)
                yield UnreadRate(name, ast.unparse(node), where)


@dataclass(frozen=True)
class SingleRate:
    """A statement that sets the learning rate of one parameter group by its number.

    Attributes:
        text: the statement.
        location: its line.
    """

    text: str
    location: Location


def single_rates(sources: Sequence[Source], groups: int) -> Iterator[SingleRate]:
    """Yield ``optimizer.param_groups[0]["lr"] = rate``, where no other of ``groups`` gets any.

    None is yielded where a number is not written out, as in a loop over groups.
    """
    found: dict[int, SingleRate] = {}
    for source in sources:
        for node in source.find(ast.Subscript):
            if not isinstance(node.ctx, ast.Store) or not _is_rate_of_group(source, node):
                continue
            number = written(node.value.slice) if isinstance(node.value, ast.Subscript) else ""
            if not number.removeprefix("-").isdecimal():
                return
            statement = next(e for e in source.ancestors(node) if isinstance(e, ast.stmt))
            where = Location(file=source.file, line=node.lineno)
            found.setdefault(int(number) % groups, SingleRate(ast.unparse(statement), where))
    if len(found) == 1 < groups:
        yield from found.values()


def _is_rate_of_group(source: Source, node: ast.Subscript) -> bool:
    """Whether ``node`` is the ``["lr"]`` of a parameter group: by its number, or in a loop."""
    if not isinstance(node.slice, ast.Constant) or node.slice.value != "lr":
        return False
    loops = [written(e.iter) for e in source.ancestors(node) if isinstance(e, ast.For)]
    return any("param_groups" in text for text in (written(node.value), *loops))


def _changed(node: ast.stmt) -> str | None:
    """Return the rate that ``node`` multiplies, divides or sets by itself."""
    target: ast.expr
    value: ast.expr | None = None
    if isinstance(node, ast.AugAssign) and isinstance(node.op, (ast.Mult, ast.Div)):
        target = node.target
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, value = node.targets[0], node.value
    else:
        return None
    if not isinstance(target, ast.Name) or not _RATE.search(target.id):
        return None
    own = value is None or any(
        isinstance(part, ast.BinOp)
        and any(isinstance(each, ast.Name) and each.id == target.id for each in ast.walk(part))
        for part in ast.walk(value)
    )
    return target.id if own else None


def _reads(source: Source, change: ast.stmt, loop: ast.stmt, name: str) -> Iterator[bool]:
    """Yield for each use of ``name`` whether it may be more than showing it, or comes first."""
    outer = _function_around(source, change)
    for node in ast.walk(_scope(source, outer, name)):
        if isinstance(node, (ast.Global, ast.Nonlocal)) and name in node.names:
            yield True
        if not isinstance(node, ast.Name) or node.id != name or not isinstance(node.ctx, ast.Load):
            continue
        around = list(source.ancestors(node))
        shown = any(isinstance(each, ast.Call) and _SHOWS.match(called(each)) for each in around)
        before = node.lineno < loop.lineno and _function_around(source, node) is outer
        yield not (change in around or shown or before)


def _function_around(source: Source, node: ast.AST) -> ast.AST | None:
    return next((each for each in source.ancestors(node) if isinstance(each, _SCOPES)), None)


def _scope(source: Source, function: ast.AST | None, name: str) -> ast.AST:
    """Return ``function``; all of the file where there is none, or the variable is the module's."""
    if function is None:
        return source.tree
    shared = (
        isinstance(each, (ast.Global, ast.Nonlocal)) and name in each.names
        for each in ast.walk(function)
    )
    return source.tree if any(shared) else function
