"""Loops of a program's source that freeze parameters by their names."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType

from nnaudit.report import Location
from nnaudit.targets.source import Source, called, written

_PLAIN = (
    ast.And, ast.BoolOp, ast.Compare, ast.Constant, ast.Eq, ast.Expression, ast.GeneratorExp,
    ast.In, ast.List, ast.ListComp, ast.Load, ast.Name, ast.Not, ast.NotEq, ast.NotIn, ast.Or,
    ast.Set, ast.Store, ast.Tuple, ast.UnaryOp, ast.comprehension,
)  # fmt: skip
"""What a condition may be made of so that it can be evaluated here, besides calls of these:"""

_METHODS = frozenset({"startswith", "endswith"})
_FUNCTIONS = {"any": any, "all": all}


@dataclass(frozen=True)
class FreezingLoop:
    """A loop over ``named_parameters()`` that freezes those whose names meet a condition.

    Attributes:
        condition: as it is written.
        location: of the condition.
        matches: how many names meet it.
    """

    condition: str
    location: Location
    matches: int


def freezing_loops(source: Source, names: Iterable[str]) -> Iterator[FreezingLoop]:
    """Yield the loops of ``source`` that freeze by name, with what their condition finds in names.

    Only those that are run whatever comes, and whose condition holds nothing but the name and
    constants.
    """
    known = tuple(names)
    for loop in source.find(ast.For):
        name = _name_of(loop)
        if not name or not _is_run(source, loop):
            continue
        conditions = (node for node in ast.walk(loop) if isinstance(node, ast.If))
        for node in conditions:
            test = _evaluated(node.test, name) if any(map(_freezes, node.body)) else None
            if test is not None:
                # It is made of constants, the name and the functions above alone.
                found = sum(bool(eval(test, _namespace(name, each))) for each in known)
                where = Location(file=source.file, line=node.lineno)
                yield FreezingLoop(written(node.test), where, found)


def _name_of(loop: ast.For) -> str:
    """Return the variable that holds the name in ``for name, p in net.named_parameters()``."""
    over, target = loop.iter, loop.target
    if not isinstance(over, ast.Call) or called(over) != "named_parameters":
        return ""
    first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else None
    return first.id if isinstance(first, ast.Name) else ""


def _is_run(source: Source, node: ast.AST) -> bool:
    """Whether no condition stands before ``node``, nor before the calls of its function."""
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, (ast.If, ast.Try, ast.While)) and not _is_entry(ancestor):
            return False
        if isinstance(ancestor, (ast.FunctionDef, ast.AsyncFunctionDef)):
            calls = [call.node for call in source.calls if call.name == ancestor.name]
            entry = ancestor.name == "__init__"
            return entry or (bool(calls) and all(_is_run(source, call) for call in calls))
    return True


def _is_entry(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in written(node.test)


def _freezes(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        target, value = statement.targets[0], statement.value
        off = isinstance(value, ast.Constant) and value.value is False
        return off and isinstance(target, ast.Attribute) and target.attr == "requires_grad"
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and written(call).endswith(".requires_grad_(False)")


def _evaluated(test: ast.expr, name: str) -> CodeType | None:
    """Return the condition as code; None where it may depend on, or do, anything else."""
    inner = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
    bound = {n.id for n in ast.walk(test) if isinstance(n, ast.Name) and _stores(n)}
    if name not in inner or inner - bound - {name, *_FUNCTIONS}:
        return None
    for node in ast.walk(test):
        if isinstance(node, ast.Call):
            func = node.func
            method = isinstance(func, ast.Attribute) and func.attr in _METHODS
            if not method and not (isinstance(func, ast.Name) and func.id in _FUNCTIONS):
                return None
        elif isinstance(node, ast.Attribute):
            if node.attr not in _METHODS:
                return None
        elif not isinstance(node, _PLAIN):
            return None
    return compile(ast.Expression(test), "<condition>", "eval")


def _stores(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _namespace(name: str, value: str) -> dict[str, object]:
    return {"__builtins__": {}, **_FUNCTIONS, name: value}
