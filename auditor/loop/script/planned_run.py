"""How many epochs a script's training loop counts, read off the loops that it is in.

A variable called ``epochs`` may be of another phase, and most scripts have a ``range`` to look at.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

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
    """

    epochs: int = 0
    whole: bool = False


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
    whole = not (_left_early(outer) or _left_early(inner)) and _goes_through(inner)
    return PlannedRun(max(epochs, 0), whole)


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


def _value(node: ast.expr, variables: dict[str, Any]) -> Any:
    """Return what a number, name, attribute or entry stands for; None where it is anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return variables.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _value(node.value, variables)
        held = vars(owner) if hasattr(owner, "__dict__") else {}
        return held.get(node.attr, vars(type(owner)).get(node.attr))
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        owner = _value(node.value, variables)
        return owner.get(node.slice.value) if isinstance(owner, dict) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _value(node.left, variables), _value(node.right, variables)
        return left + right if type(left) is int and type(right) is int else None
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
