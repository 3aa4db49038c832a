"""Networks that are to follow another, and that a program's source does not let follow."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nnaudit.report import Location
from nnaudit.targets.source import Source, assigned, called, written

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


_PLAIN_BASES = frozenset({"ABC", "Module", "object"})
"""Classes whose methods nothing calls but the program, and torch by the names it has for them."""


class Cause(StrEnum):
    """Why a network does not follow."""

    NEVER = "no statement updates it"
    PERIOD = "the steps are counted anew before it is to be updated"
    REBOUND = "a loop over its parameters binds a name anew"
    UNCALLED = "the function that updates it is never called"
    SAME = "it is the other network by a second name"


@dataclass(frozen=True)
class UnsyncedNetwork:
    """A network that is made as a copy, and that does not follow.

    Attributes:
        name: of the variable or attribute; of the function where that is never called.
        location: where the copy is made, or where it is to be updated.
        period: the optimizer steps after which a statement is to update it; 0 where none does.
        cause: why not.
    """

    name: str
    location: Location
    period: int = 0
    cause: Cause = Cause.NEVER


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
                yield UnsyncedNetwork(name, where, period, Cause.PERIOD)


def second_names(source: Source) -> Iterator[UnsyncedNetwork]:
    """Yield names of networks that are to follow another one and are that one.

    ``target = policy``, where a line loads the state of the one into the other, or a loop goes
    through the weights of both: two networks were meant. A name that is bound again is left out.
    """
    bound: dict[str, list[tuple[str, int]]] = {}
    for node in source.find(ast.Assign):
        for each in node.targets:
            for target, value in assigned(each, node.value):
                plain = isinstance(value, (ast.Name, ast.Attribute))
                bound.setdefault(written(target), []).append(
                    (written(value) if plain else "", node.lineno)
                )
    followed = {frozenset(_paired_names(loop).values()) for loop in source.find(ast.For)}
    followed |= {frozenset(pair) for pair in _loads(source)}
    for name, given in bound.items():
        for other, line in given[:1] if len(given) == 1 else []:
            if other and frozenset((name, other)) in followed and name != other:
                yield UnsyncedNetwork(name, Location(file=source.file, line=line), cause=Cause.SAME)


def unused_averages(sources: Sequence[Source]) -> Iterator[UnsyncedNetwork]:
    """Yield where the program makes an ``AveragedModel`` of torch's and never updates any.

    One that is made by a function of a library's, or given to one, is not seen here.
    """
    if "update_parameters" in {name for source in sources for name in _mentioned(source)}:
        return
    for source in sources:
        for node in source.find(ast.Assign):
            name = written(node.targets[0])
            made = isinstance(node.value, ast.Call) and called(node.value) == "AveragedModel"
            if made and not _is_given_away(source, name):
                yield UnsyncedNetwork(name, Location(file=source.file, line=node.lineno))


def _is_given_away(source: Source, name: str) -> bool:
    """Whether a function of another file, by a name that may update it, is given ``name``."""
    own = {function.name for function in source.find(ast.FunctionDef)}
    return any(
        name in map(written, call.args)
        and called(call) not in own
        and _UPDATES.search(called(call)) is not None
        and called(call) != "update_bn"
        for call in source.find(ast.Call)
    )


def _loads(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the two networks of each ``a.load_state_dict(b.state_dict())``."""
    for call in source.find(ast.Call):
        loaded = call.args[0] if call.args else None
        state = loaded.func if isinstance(loaded, ast.Call) else None
        if called(call) != "load_state_dict" or not isinstance(call.func, ast.Attribute):
            continue
        if isinstance(state, ast.Attribute) and state.attr == "state_dict":
            yield written(call.func.value), written(state.value)


def idle_updates(sources: Sequence[Source]) -> Iterator[UnsyncedNetwork]:
    """Yield updates of a network's parameters that change nothing, and those never called.

    ``for k, q in zip(key.parameters(), query.parameters()): k = 0.9 * k + 0.1 * q`` sets a variable
    of the loop, which nothing reads afterwards. A function with such a loop, right or wrong, is
    never called where its name occurs nowhere else; a framework may call a method of its class.
    """
    used = {name for source in sources for name in _mentioned(source)}
    for source in sources:
        for loop in source.find(ast.For):
            names = _paired_names(loop)
            for name, written_as in names.items():
                if (line := _rebound(loop, name)) is not None:
                    where = Location(file=source.file, line=line)
                    yield UnsyncedNetwork(written_as, where, cause=Cause.REBOUND)
            function = next(
                (each for each in source.ancestors(loop) if isinstance(each, ast.FunctionDef)), None
            )
            if function is None or not _sets_any(loop, names) or function.name in used:
                continue
            if _is_own(source, function):
                where = Location(file=source.file, line=function.lineno)
                yield UnsyncedNetwork(function.name, where, cause=Cause.UNCALLED)


def _mentioned(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield _last(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value  # getattr(model, "update")


def _paired_names(loop: ast.For) -> dict[str, str]:
    """Return the variables of a loop over two networks' parameters, with the networks' names."""
    pairs = loop.iter
    if not isinstance(pairs, ast.Call) or called(pairs) != "zip" or len(pairs.args) != 2:
        return {}
    of = [each for each in pairs.args if isinstance(each, ast.Call) and called(each) in _WEIGHTS]
    if len(of) != 2 or not isinstance(loop.target, ast.Tuple):
        return {}
    names: dict[str, str] = {}
    for target, call in zip(loop.target.elts, of, strict=False):
        variables = target.elts[-1:] if isinstance(target, ast.Tuple) else [target]
        owner = call.func.value if isinstance(call.func, ast.Attribute) else call.func
        names.update({_last(each): written(owner) for each in variables if _last(each)})
    return names


def _rebound(loop: ast.For, name: str) -> int | None:
    """Return the line that binds ``name`` anew by itself, if nothing in the loop reads it after."""
    for statement in loop.body:
        if not isinstance(statement, ast.Assign) or [_last(t) for t in statement.targets] != [name]:
            continue
        reads = [
            (node.lineno, node.col_offset)
            for node in ast.walk(loop)
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
        ]
        own = [node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)]
        end = (statement.end_lineno or 0, statement.end_col_offset or 0)
        is_name = all(isinstance(target, ast.Name) for target in statement.targets)
        if is_name and name in own and max(reads) < end:
            return statement.lineno
    return None


def _sets_any(loop: ast.For, names: Iterable[str]) -> bool:
    """Whether the loop does anything with its variables but read them."""
    return any(
        isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr))
        and any(isinstance(each, ast.Name) and each.id in names for each in ast.walk(node))
        for node in loop.body
    )


def _is_own(source: Source, function: ast.FunctionDef) -> bool:
    """Whether only the program can call ``function``."""
    if function.decorator_list and not all(
        "no_grad" in written(each) or "inference_mode" in written(each)
        for each in function.decorator_list
    ):
        return False
    owner = next(source.ancestors(function), None)
    if not isinstance(owner, ast.ClassDef):
        return isinstance(owner, ast.Module)
    private = function.name.startswith("__")
    return not private and all(_last(base) in _PLAIN_BASES for base in owner.bases)


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
        loop = next(loops, None)
        return not _only_freezes(loop) and not _only_reads(loop, written(method.value))
    if method.attr == "load_state_dict":
        return _is_repeated(source, method)
    call = next(source.ancestors(method), None)
    is_called = isinstance(call, ast.Call) and call.func is method
    return method.attr not in _HARMLESS and (
        not is_called or _UPDATES.search(method.attr) is not None
    )


def _only_reads(loop: ast.For | None, network: str) -> bool:
    """Whether ``loop`` goes through two networks' weights and only reads those of ``network``."""
    names = {} if loop is None else _paired_names(loop)
    own = [name for name, owner in names.items() if owner == network]
    return loop is not None and len(own) == 1 and len(names) == 2 and not _changes(loop, own[0])


def _changes(loop: ast.For, name: str) -> bool:
    """Whether anything in ``loop`` may set the values of its variable ``name``."""
    for node in (each for statement in loop.body for each in ast.walk(statement)):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(_root(target) == name for target in targets):
                return True
        elif isinstance(node, ast.Call):
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if _root(node.func) == name and method.endswith("_"):
                return True
            given = any(_root(each) == name for each in node.args)
            if given and _root(node.func) not in (*_names_in(loop.target), "torch"):
                return True  # a function of the program's own
    return False


def _root(node: ast.AST) -> str:
    """Return the variable that an expression such as ``p.data.mul_(2).add_`` begins with."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _names_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


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
