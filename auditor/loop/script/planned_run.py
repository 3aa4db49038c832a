"""How many epochs a script's training loop counts, read off the loops that it is in.

A variable called ``epochs`` may be of another phase, and most scripts have a ``range`` to look at.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nnaudit.targets import callstack
from nnaudit.targets.source import LoopStatement, called, source_of

_COUNTING = ("range", "trange", "tqdm", "track")
_SHOWING = ("enumerate", "tqdm", "track")
_FRAMEWORKS = ("lightning", "pytorch_lightning", "transformers")


@dataclass(frozen=True)
class PlannedRun:
    """How long a script means to train.

    Attributes:
        epochs: how often it goes through its loader, at the most; 0 unless certain.
        whole: it does not leave off early, in an epoch or between two.
        batches: of an epoch, where the loop makes them of the places of the rows; 0 elsewhere.
    """

    epochs: int = 0
    whole: bool = False
    batches: int = 0


def counted_span() -> PlannedRun:
    """Return how often the calling thread's user frames go through their training loader.

    That is certain where the line is in two loops, of which the outer one counts over a ``range``,
    or in none and a trainer of a framework is told a number of epochs.
    """
    frames = callstack.user_frames()
    loops = [
        (frame, loop)
        for frame in frames
        for loop in source_of(frame.f_code.co_filename).loops_around(frame.f_code, frame.f_lineno)
    ]
    if not loops:
        told = (_told(value) for frame in frames[::-1] for value in frame.f_locals.values())
        return next((span for span in told if span.epochs > 0), PlannedRun())
    frame, outer = loops[0]
    if len(loops) != 2 or not isinstance(outer, ast.For):
        return PlannedRun()
    inner = loops[1][1]
    epochs = _length(outer.iter, {**frame.f_globals, **frame.f_locals})
    within = loops[1][0]
    batches = _batches(inner, {**within.f_globals, **within.f_locals})
    goes_through = batches > 0 or _goes_through(inner)
    whole = not (_left_early(outer) or _left_early(inner)) and goes_through
    return PlannedRun(max(epochs, 0), whole, batches)


def _left_early(loop: LoopStatement) -> bool:
    """Whether the loop has a ``break`` of its own, or a ``return``."""
    todo: list[tuple[ast.AST, bool]] = [(each, True) for each in (*loop.body, *loop.orelse)]
    while todo:
        node, own = todo.pop()
        if isinstance(node, ast.Return) or (own and isinstance(node, ast.Break)):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            own = own and not isinstance(node, (ast.For, ast.AsyncFor, ast.While))
            todo += [(child, own) for child in ast.iter_child_nodes(node)]
    return False


def _goes_through(loop: LoopStatement) -> bool:
    """Whether the loop takes all that there is of something with a name, progress shown or not."""
    if not isinstance(loop, ast.For):
        return False
    node = loop.iter
    while isinstance(node, ast.Call) and node.args and called(node) in _SHOWING:
        node = node.args[0]
    return isinstance(node, (ast.Name, ast.Attribute, ast.Subscript))


def _length(node: ast.expr, variables: dict[str, Any]) -> int:
    """Return how many numbers ``range(...)`` has, progress bars looked through; 0 if unknown."""
    if not isinstance(node, ast.Call) or not node.args:
        return 0
    if called(node) not in _COUNTING:
        return 0
    if isinstance(node.args[0], ast.Call):
        return _length(node.args[0], variables)
    values = [_value(each, variables) for each in node.args]
    if not all(type(value) is int for value in values) or len(values) > 2:
        return 0
    first, last = (0, *values)[-2:]
    return int(last - first)


def _batches(loop: LoopStatement, variables: dict[str, Any]) -> int:
    """Return how many batches a loop over the places of rows makes; 0 where it is another.

    ``range(0, len(x), size)``, ``range(len(x) // size)``, ``torch.randperm(n).split(size)``. Of a
    plain ``range(n)`` nobody knows whether it counts batches.
    """
    if not isinstance(loop, ast.For):
        return 0
    node = loop.iter
    while isinstance(node, ast.Call) and called(node) in _SHOWING and node.args:
        node = node.args[0]
    if not isinstance(node, ast.Call):
        return 0
    if called(node) in ("range", "trange") and len(node.args) == 3:
        first, last, step = (_value(each, variables) for each in node.args)
        known = all(type(each) is int for each in (first, last, step)) and step > 1
        return len(range(first, last, step)) if known else 0
    if called(node) in ("range", "trange") and len(node.args) == 1:
        divided = isinstance(node.args[0], ast.BinOp) and isinstance(node.args[0].op, ast.FloorDiv)
        count = _value(node.args[0], variables) if divided else None
        return count if type(count) is int else 0
    if called(node) == "split" and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
        rows, size = _rows(node.func.value, variables), _value(node.args[0], variables)
        return math.ceil(rows / size) if rows and type(size) is int and size > 1 else 0
    return 0


def _rows(node: ast.expr, variables: dict[str, Any]) -> int:
    """Return how many rows a tensor has, or a permutation that is drawn on the spot; 0 unknown."""
    if isinstance(node, ast.Call) and called(node) in ("randperm", "permutation") and node.args:
        drawn = _value(node.args[0], variables)
        return drawn if type(drawn) is int else 0
    value = _value(node, variables)
    return len(value) if isinstance(value, Tensor) and value.ndim else 0


_TABLES = (Tensor, np.ndarray)

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b if b else 0,
}


def _value(node: ast.expr, variables: dict[str, Any]) -> Any:
    """Return what an expression stands for, of which no part calls the user's code; else None.

    A number, name, attribute or entry, the size of a tensor, sums and products of these.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return variables.get(node.id)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left, variables), _value(node.right, variables)
        whole = type(left) is int and type(right) is int
        return _ARITHMETIC[type(node.op)](left, right) if whole else None
    if isinstance(node, ast.Call):
        return _size(node, variables)
    return _part(node, variables)


def _part(node: ast.expr, variables: dict[str, Any]) -> Any:
    """Return the attribute or the entry that ``node`` is; None where it is anything else."""
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, variables)
        if isinstance(owner, _TABLES) and node.attr == "shape":
            return tuple(owner.shape)
        held = vars(owner) if hasattr(owner, "__dict__") else {}
        return held.get(node.attr, vars(type(owner)).get(node.attr))
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        owner, key = _value(node.value, variables), node.slice.value
        if type(owner) is tuple and type(key) is int and -len(owner) <= key < len(owner):
            return owner[key]
        return owner.get(key) if isinstance(owner, dict) else None
    return None


def _size(node: ast.Call, variables: dict[str, Any]) -> int | None:
    """Return ``len(x)`` and ``x.size(0)`` of a tensor or an array, which do not grow."""
    if called(node) == "len" and len(node.args) == 1:
        value = _value(node.args[0], variables)
        return len(value) if isinstance(value, _TABLES) and value.ndim else None
    if called(node) == "size" and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
        value, axis = (_value(each, variables) for each in (node.func.value, node.args[0]))
        known = isinstance(value, Tensor) and type(axis) is int and axis < value.ndim
        return value.size(axis) if known else None
    return None


def _told(value: Any) -> PlannedRun:
    """Return how long a trainer of a framework is told to train."""
    if type(value).__module__.partition(".")[0] not in _FRAMEWORKS:
        return PlannedRun()
    for held in (value, getattr(value, "args", None)):
        epochs = getattr(held, "max_epochs", None) or getattr(held, "num_train_epochs", None)
        if isinstance(epochs, (int, float)) and epochs == int(epochs):
            steps = getattr(held, "max_steps", None)
            limited = isinstance(steps, int) and steps > 0
            return (
                PlannedRun() if limited else PlannedRun(max(int(epochs), 0), not _may_stop(value))
            )
    return PlannedRun()


def _may_stop(trainer: Any) -> bool:
    """Whether a trainer is told to stop early, or to leave part of each epoch out."""
    handler = getattr(trainer, "callback_handler", trainer)
    callbacks = getattr(handler, "callbacks", ())
    stopping = any("EarlyStopping" in type(each).__name__ for each in callbacks)
    return stopping or getattr(trainer, "limit_train_batches", 1.0) not in (None, 1.0)
