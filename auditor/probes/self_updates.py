"""Updates of a trained network's weights from these weights: an average that is the network."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nnaudit.context import Audit, Probe
from nnaudit.errors import is_user
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered
from nnaudit.targets.source import source_of

_STEPS = 3

_TOWARD = {"add_": "other", "copy_": "src", "lerp_": "end"}
"""Methods that move a tensor toward another, and what they call that."""

_LISTED = {"_foreach_add_", "_foreach_copy_", "_foreach_lerp_"}
"""The same for lists of tensors, two by two."""

_OPERATORS = {"__iadd__", "__isub__", "__imul__", "__itruediv__"}

_NO_WRITES = {"detach_", "requires_grad_", "rename_", "resize_", "share_memory_"}
"""Methods whose names end as if they wrote numbers, and that write none."""


@dataclass(frozen=True)
class SelfUpdate:
    """A statement that moves weights of a trained network toward themselves, and no others.

    Attributes:
        weights: how many tensors it did so with.
        location: of the statement.
    """

    weights: int
    location: Location


class SelfUpdates(Probe[SelfUpdate | None]):
    """Takes a few steps and looks at every write into a trained weight from the user's code."""

    def measure(self, audit: Audit) -> SelfUpdate | None:
        """Return the first statement that changes nothing but a network from itself.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        held = [p for optimizer in loop.optimizers for p in parameters_of(optimizer)]
        tap = Tap(held)
        with preserved(loop.subjects), tap:
            for batch in consecutive_batches(loop, _STEPS):
                audit.clock.check()
                loop.step(batch)
        return next(tap.found(), None)


class Tap(TorchFunctionMode):
    """Notes what the user's statements write into ``weights``, and whether it came from there."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self._weights = {_place(weight) for weight in weights} - {None}
        self._writes: dict[tuple[Location, ...], tuple[set[Any], bool]] = {}

    def found(self) -> Iterator[SelfUpdate]:
        """Yield the statements that wrote trained weights from themselves, and nothing else.

        Where others were written too, two networks share a part of their weights. A function that
        updates several networks is told apart by who calls it.
        """
        for calls, (places, only) in self._writes.items():
            if only and places:
                yield SelfUpdate(len(places), calls[-1])

    @registered(Role.STANDS_IN)
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if args and _is_write(func):
            with torch._C.DisableTorchFunction():
                self._look(func.__name__, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _look(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pairs = list(_pairs(name, args, kwargs))
        if not pairs:
            return
        frame = callstack.caller(through=Role.STANDS_IN)
        if frame is None or not is_user(frame.f_code.co_filename):
            return
        calls = tuple(map(callstack.location, callstack.user_frames()))
        for written, toward in pairs:
            place = _place(written)
            own = place in self._weights
            itself = own and (
                (_place(toward) == place and _is_toward(name, kwargs))
                or _is_paired_with_itself(frame, place)
            )
            if itself or toward is not None or not own:
                places, only = self._writes.get(calls, (set(), True))
                self._writes[calls] = places | ({place} if itself else set()), only and itself


def _is_write(func: Any) -> bool:
    """Whether ``func`` writes numbers into its first argument: ``mul_``, ``+=``, ``.data =``."""
    name = getattr(func, "__name__", "")
    if name == "__set__":
        return getattr(getattr(func, "__self__", None), "__name__", "") == "data"
    method = name.endswith("_") and not name.endswith("__") and name not in _NO_WRITES
    return method or name in _OPERATORS


def _pairs(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield what is written, and the tensor that it is moved toward, where that is known."""
    if name in _LISTED and len(args) > 1 and isinstance(args[1], (list, tuple)):
        yield from zip(args[0], args[1], strict=False)
    elif isinstance(args[0], Tensor):
        other = args[1] if len(args) > 1 else kwargs.get(_TOWARD.get(name, ""))
        yield args[0], other if name in _TOWARD and isinstance(other, Tensor) else None


def _is_toward(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether the second tensor is moved to: ``p.add_(p, alpha=-lr * decay)`` is weight decay."""
    alpha = kwargs.get("alpha", 1)
    return "add" not in name or not isinstance(alpha, (int, float)) or 0 < alpha < 1


def _place(tensor: Tensor | None) -> tuple[int, tuple[int, ...]] | None:
    """Return where the numbers of ``tensor`` are in memory, and in what shape."""
    if not isinstance(tensor, Tensor) or not tensor.numel():
        return None
    try:
        return tensor.data_ptr(), tuple(tensor.shape)
    except (NotImplementedError, RuntimeError):
        return None  # a tensor that has no storage of its own


def _is_paired_with_itself(frame: FrameType, place: Any) -> bool:
    """Whether ``frame`` is in a loop over ``zip(...)`` two of whose variables are this tensor."""
    known = callstack.variables(frame)
    names = {name for name, value in list(known.items()) if _place(value) == place}
    if len(names) < 2:
        return False
    source = source_of(frame.f_code.co_filename)
    loops: list[ast.For | ast.comprehension] = [
        *source.at(frame.f_lineno, ast.For),
        *(each for comp in source.at(frame.f_lineno, ast.ListComp) for each in comp.generators),
    ]
    return any(len(_paired(loop) & names) > 1 for loop in loops)


def _paired(loop: ast.For | ast.comprehension) -> set[str]:
    """Return the variables of a loop over ``zip(...)``."""
    pairs = loop.iter
    if not isinstance(pairs, ast.Call) or getattr(pairs.func, "id", "") != "zip":
        return set()
    return {node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)}
