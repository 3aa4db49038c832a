"""State dicts that the program keeps while it goes on training, and what becomes of them."""

from __future__ import annotations

import ast
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.trace import patched
from nnaudit.measure.kept_network import KeptNetwork, kept_networks
from nnaudit.measure.movement import same
from nnaudit.measure.seeding import source_files
from nnaudit.report import Location
from nnaudit.targets import callstack
from nnaudit.targets.source import assigned, called, source_of

_ROUNDS = 2
"""Ends of epochs that are lived through: what is kept of the best is often kept at the first."""


@dataclass(frozen=True)
class Assignment:
    """A statement that keeps a state dict under a condition, and where that is used afterwards.

    Attributes:
        name: the variable or attribute: ``best``, ``self.best_state``.
        used: the line at which it is loaded, written or returned; 0 where none was found.
    """

    name: str
    used: int = 0


@dataclass(frozen=True)
class KeptState:
    """A state dict that was still held after further steps.

    Attributes:
        location: the user's line that called ``state_dict()``.
        tensors: how many of its tensors lie in the memory of the network's own.
        changed: how many of these have changed since.
        kept: the statement that keeps it; None where the line is none that keeps the best.
    """

    location: Location
    tensors: int
    changed: int
    kept: Assignment | None


class KeptStates(Probe[tuple[KeptState, ...] | None]):
    """Trains across the end of an epoch or two, and looks which state dicts have stayed."""

    def measure(self, audit: Audit) -> tuple[KeptState, ...] | None:
        """Return the state dicts that were kept; None where no end of an epoch can be reached.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        batch = next(iter(loop.batches()))
        with _listening() as calls:
            audit.clock.check()
            loop.step(batch)
            for _ in range(_ROUNDS):
                audit.clock.check()
                if not _goes_on(loop, batch):
                    return None
            if not calls and loop.makes_batches:
                return None
            try:
                before = _values_before(loop, batch, calls)
            except UserCodeError:
                return None
        found = [_kept(call, before[id(call)]) for call in calls if id(call) in before]
        return tuple(state for state in found if state is not None)


class KeptNetworks(Probe[tuple[KeptNetwork, ...]]):
    """Reads in the user's files whether the network itself is kept for the best."""

    def measure(self, audit: Audit) -> tuple[KeptNetwork, ...]:
        """Return what keeps it, in the order of the files."""
        sources = map(source_of, source_files(audit.loop))
        return tuple(kept for source in sources for kept in kept_networks(source))


def _values_before(loop: Loop, batch: Any, calls: list[_Call]) -> dict[int, dict[str, Tensor]]:
    """Take a step; return what each state dict held before the optimizer changed the weights.

    A program that makes its batches itself may keep one within the step, before that.
    """
    before = {id(call): call.values() for call in calls}

    def steps(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        before.update({id(c): c.values() for c in calls if id(c) not in before})

    with ExitStack() as stack:
        for optimizer in loop.optimizers:
            stack.callback(optimizer.register_step_pre_hook(steps).remove)
        loop.step(batch)
    return before


def _goes_on(loop: Loop, batch: Any) -> bool:
    """Live through what the program does between two epochs, or two steps where it has none.

    False where that cannot be reached.
    """
    if loop.makes_batches:
        loop.step(batch)
        return True
    return loop.next_epoch(batch) is not None


class _Call:
    """One call of ``state_dict()``: what it returned is not held, only watched.

    So are its tensors: a copy of the dict alone holds the very same ones.
    """

    def __init__(self, module: nn.Module, result: Any, location: Location) -> None:
        self.location = location
        self._result = weakref.ref(result)
        own = {id(value) for value in (*module.parameters(), *module.buffers())}
        self._tensors = {
            name: weakref.ref(value) for name, value in _tensors(result) if id(value) not in own
        }

    @property
    def alive(self) -> dict[str, Tensor]:
        """What it holds by now, or its tensors that are still held where the dict is gone."""
        if (result := self._result()) is not None:
            return dict(_tensors(result))
        held = ((name, value()) for name, value in self._tensors.items())
        return {name: value for name, value in held if value is not None}

    def values(self) -> dict[str, Tensor]:
        """Return copies of the tensors in it by now; empty where all is gone."""
        return {name: value.detach().clone() for name, value in self.alive.items()}


def _tensors(state: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, dict):
        yield from ((str(k), v) for k, v in state.items() if isinstance(v, Tensor))


@contextmanager
def _listening() -> Iterator[list[_Call]]:
    """Collect the calls of ``state_dict()`` that the user's lines make."""
    calls: list[_Call] = []

    def made(real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def state_dict(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            result = real(module, *args, **kwargs)
            outermost = not args and kwargs.get("destination") is None
            where = callstack.user_line() if outermost and isinstance(result, OrderedDict) else None
            if where is not None:
                calls.append(_Call(module, result, where))
            return result

        return state_dict

    with patched(nn.Module, "state_dict", made):
        yield calls


def _kept(call: _Call, before: dict[str, Tensor]) -> KeptState | None:
    shared = [(name, value) for name, value in call.alive.items() if name in before]
    changed = sum(not same(value, before[name]) for name, value in shared)
    if not changed:
        return None  # its tensors were copied in place of those that were given, or nothing moves
    return KeptState(call.location, len(shared), changed, assignment(call.location))


# --- what the user's text does with it -----------------------------------------------------------

_COPIES = frozenset({"clone", "cpu", "deepcopy", "to"})
"""Functions that copy tensors, or do on another device than this one."""

_USES = ("load", "save", "restore", "copy_")
"""Parts of the names of functions by which weights are used later."""


def assignment(location: Location) -> Assignment | None:
    """Return what keeps the result of ``state_dict()`` at ``location``, under a condition.

    None where the line keeps nothing, or keeps it whatever comes: then it is the last state, and
    equal to the network's by design.
    """
    tree = source_of(location.file).tree
    chain = _enclosing(tree, location.line)
    statement = chain[-1] if chain else None
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.value is None:
        return None
    choice = isinstance(statement.value, ast.IfExp)
    condition = statement if choice else _innermost_condition(chain)
    if condition is None or not _is_reference(statement.value):
        return None
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    name = next(_names_of(targets, statement.value), "")
    lines = _uses_of(tree, name)
    later = [line for line in lines if not condition.lineno <= line <= _end(condition)]
    if len(later) < len(lines) and (not later or _is_set_elsewhere(tree, name, statement)):
        return None  # used at once, as the state that it is then; later it may be another
    return Assignment(name, min(later, default=0)) if name else None


def _is_set_elsewhere(tree: ast.AST, name: str, statement: ast.stmt) -> bool:
    """Whether ``name`` is given anything else than None or nothing by another statement."""
    return any(
        not _is_empty(value) and name in map(ast.unparse, getattr(part, "elts", [part]))
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and node is not statement
        for target in node.targets
        for part, value in assigned(target, node.value)
    )


def _is_empty(value: ast.expr) -> bool:
    constant = isinstance(value, ast.Constant) and value.value is None
    return constant or (isinstance(value, ast.Dict) and not value.keys)


def _names_of(targets: Sequence[ast.expr], value: ast.expr) -> Iterator[str]:
    """Yield the variables and attributes to which the state dict in ``value`` is assigned."""
    for target in targets:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for part, each in zip(target.elts, value.elts, strict=False):
                if _is_reference(each):
                    yield from _names_of([part], each)
        elif isinstance(target, (ast.Name, ast.Attribute)):
            yield ast.unparse(target)


def _innermost_condition(chain: list[ast.stmt]) -> ast.stmt | None:
    return next((node for node in reversed(chain) if isinstance(node, ast.If)), None)


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _enclosing(tree: ast.AST, line: int) -> list[ast.stmt]:
    """Return the statements around ``line``, outermost first."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and node.lineno <= line <= _end(node)
    ]
    return sorted(found, key=lambda node: (node.lineno, -_end(node)))


def _is_reference(value: ast.expr) -> bool:
    """Whether ``value`` is made of what ``state_dict()`` returned, and copies no tensor.

    ``dict(...)``, ``.copy()`` and a comprehension copy the dict alone.
    """
    names = {called(node) for node in ast.walk(value) if isinstance(node, ast.Call)}
    return "state_dict" in names and not names & _COPIES


def _uses_of(tree: ast.AST, name: str) -> list[int]:
    """Return the lines at which ``name`` is loaded, saved or returned."""
    attribute = name.rpartition(".")[2] if "." in name else ""

    def mentions(node: ast.AST) -> bool:
        return any(
            (isinstance(part, ast.Attribute) and part.attr == attribute)
            if attribute
            else (isinstance(part, ast.Name) and part.id == name)
            for part in ast.walk(node)
        )

    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Return) and node.value is not None and mentions(node.value))
        or (isinstance(node, ast.Call) and _uses(node) and any(map(mentions, _given(node))))
    ]


def _uses(call: ast.Call) -> bool:
    called = ast.unparse(call.func).rpartition(".")[2].lower()
    return any(part in called for part in _USES)


def _given(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]
