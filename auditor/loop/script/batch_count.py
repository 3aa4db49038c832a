"""Whether the body of a training loop depends on how many batches there have been.

During an audit an epoch may go on beyond the end of its loader. That is the cheapest way to lead a
script, and right where its loop does not count. Where it does (``epoch + i / len(loader)`` sets the
rate, ``i + 1 == len(loader)`` takes the last step), the 25th batch of 22 is one that its author
never thought of, and the epoch has to end where the loader does.

A number that is only printed, logged or taken modulo another (``i % 100 == 0``) means the same
beyond the loader's end, and does not count as dependence.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator

from nnaudit.targets import callstack
from nnaudit.targets.source import LoopStatement, called, source_of

_SHOWN_BY = frozenset(
    {
        "print", "log", "info", "debug", "warning", "write", "echo", "display", "update", "track",
        "set_description", "set_postfix", "set_postfix_str", "add_scalar", "add_scalars",
        "add_image", "add_images", "add_histogram", "log_metric", "log_metrics", "log_dict",
        "format", "append",
    }
)  # fmt: skip
"""Calls that show or note a number, by their last name: loggers, progress bars, trackers."""


def counts_batches() -> bool:
    """Return whether the training loop that the calling thread is in depends on the count.

    That is the innermost loop of the user's around the call for a batch; where a generator of the
    user's hands the batches on, the loop over that generator counts too.
    """
    for frame in reversed(callstack.user_frames()):
        code = frame.f_code
        loops = source_of(code.co_filename).loops_around(code, frame.f_lineno)
        if loops and depends_on_count(loops[-1]):
            return True
        if loops and not code.co_flags & inspect.CO_GENERATOR:
            return False
    return False


def depends_on_count(loop: LoopStatement) -> bool:
    """Return whether anything but what is shown of ``loop`` follows the number of its batches.

    A counter is the index of an ``enumerate`` or ``range`` that the loop goes over, or a variable
    to which its body adds a whole number; what is computed from one is a counter too.
    """
    counters = set(_counters(loop))
    if not counters:
        return False
    body = list(loop.body)
    grown = True
    while grown:
        derived = {name for stmt in _own(body) for name in _derived(stmt, counters)}
        grown = not derived <= counters
        counters |= derived
    # What is only handed on within the counters matters where it is used.
    return any(_matters(stmt, counters) for stmt in body)


def _counters(loop: LoopStatement) -> Iterator[str]:
    if isinstance(loop, (ast.For, ast.AsyncFor)):
        over = {called(node) for node in ast.walk(loop.iter) if isinstance(node, ast.Call)}
        if "enumerate" in over and isinstance(loop.target, ast.Tuple):
            yield from _names(loop.target.elts[:1])
        elif over & {"range", "trange"} and isinstance(loop.target, ast.Name):
            yield loop.target.id
    for stmt in _own(loop.body):
        if isinstance(stmt, ast.AugAssign) and isinstance(stmt.op, ast.Add) and _whole(stmt.value):
            yield ast.unparse(stmt.target)


def _derived(stmt: ast.stmt, counters: set[str]) -> Iterator[str]:
    """Yield what ``stmt`` assigns a value to that is computed from a counter."""
    if isinstance(stmt, ast.Assign) and _reads(stmt.value, counters):
        for target in stmt.targets:
            if isinstance(target, (ast.Name, ast.Attribute)):
                yield ast.unparse(target)


def _matters(stmt: ast.stmt, counters: set[str]) -> bool:
    """Whether ``stmt`` does something with a counter besides counting and showing."""
    if isinstance(stmt, ast.AugAssign) and ast.unparse(stmt.target) in counters:
        return not _whole(stmt.value)
    if isinstance(stmt, ast.Assign) and not set(map(ast.unparse, stmt.targets)) - counters:
        return False
    within = _within(stmt)
    if not within:
        return not _shows(stmt) and _reads(stmt, counters)
    heads = [node for node in ast.iter_child_nodes(stmt) if isinstance(node, ast.expr)]
    if any(_reads(node, counters) for node in heads) and not _only_shows(within):
        return True
    return any(_matters(each, counters) for each in within)


def _within(stmt: ast.stmt) -> list[ast.stmt]:
    """Return the statements that ``stmt`` holds, as an ``if`` or a ``try`` does."""
    handled = [each for handler in getattr(stmt, "handlers", ()) for each in handler.body]
    return [*(node for node in ast.iter_child_nodes(stmt) if isinstance(node, ast.stmt)), *handled]


def _reads(node: ast.AST, counters: set[str]) -> bool:
    """Whether ``node`` reads a counter other than modulo a number, or to show it."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and not _measures(node.right):
        return False
    if isinstance(node, ast.Call) and called(node) in _SHOWN_BY:
        return False
    named = isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load)
    if named and ast.unparse(node) in counters:
        return True
    return any(_reads(child, counters) for child in ast.iter_child_nodes(node))


def _only_shows(body: Iterable[ast.stmt]) -> bool:
    """Whether nothing comes of ``body`` but what is shown, and variables that are set for it."""
    return all(
        _shows(stmt)
        or (isinstance(stmt, (ast.Pass, ast.Assign, ast.AugAssign)) and not _stores_within(stmt))
        or (isinstance(stmt, ast.If) and _only_shows(_within(stmt)))
        for stmt in body
    )


def _shows(stmt: ast.stmt) -> bool:
    return (
        isinstance(stmt, ast.Expr)
        and isinstance(stmt.value, ast.Call)
        and called(stmt.value) in _SHOWN_BY
    )


def _stores_within(stmt: ast.stmt) -> bool:
    """Whether ``stmt`` writes into something: a rate into a parameter group, say."""
    nodes = (node for node in ast.walk(stmt) if isinstance(node, ast.Subscript))
    return any(isinstance(node.ctx, ast.Store) for node in nodes)


def _measures(node: ast.expr) -> bool:
    """Whether a length is part of ``node``: a count modulo that is a place in an epoch."""
    return any(isinstance(each, ast.Call) and called(each) == "len" for each in ast.walk(node))


def _whole(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _names(nodes: Iterable[ast.expr]) -> Iterator[str]:
    yield from (node.id for node in nodes if isinstance(node, ast.Name))


def _own(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of ``body``, nested ones too, but not those of functions within."""
    for stmt in body:
        yield stmt
        if not isinstance(stmt, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _own(_within(stmt))
