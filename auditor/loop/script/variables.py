"""What a paused script carries from step to step in variables: ``iter_num``, ``hidden``.

They live in the local and global variables of the user's functions. A learning rate computed from
``iter_num`` makes two runs from the same weights differ, ``while step < max_steps`` ends, and a
recurrent network goes on from the ``hidden`` of its last batch, so these variables belong to the
state of a run: :class:`ScriptVariables` copies them to a dictionary, which a snapshot keeps like
any other, and writes back what a restored snapshot has changed there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import Tensor

from nnaudit.targets import callstack

Key = tuple[int, str, str]
"""Depth among the user's frames, outermost first; the function's name; the variable."""


Value = int | float | bool | Callable[[], Any] | None
"""A number, or, for tensors, a function that returns them: a snapshot keeps which tensors a
variable held, not what was in them, and so copies nothing."""


class ScriptVariables:
    """Variables in the frames of a script that is paused at the same line again and again.

    Attributes:
        values: what they were at the last pause, or at the time of the snapshot since restored.
        tensors: variables that hold tensors, or None in their place, are among them.
    """

    def __init__(self) -> None:
        self.values: dict[Key, Value] = {}
        self.tensors = True
        self._read: dict[Key, Value] = {}

    def read(self) -> None:
        """Copy the variables of the calling thread's user frames."""
        self.values.clear()
        for depth, frame in enumerate(callstack.user_frames()):
            function = frame.f_code.co_name
            for name, value in callstack.variables(frame).items():
                if type(value) in _NEVER or name.startswith("__"):
                    continue
                if _is_number(value):
                    self.values[depth, function, name] = value
                elif self.tensors and (value is None or _is_carried(value)):
                    self.values[depth, function, name] = _held(value)
        self._read = dict(self.values)

    def write(self) -> None:
        """Give the variables the values of :attr:`values` that are others than were read."""
        changed = {
            key: value for key, value in self.values.items() if self._read.get(key, _NONE) != value
        }
        if not changed:
            return
        for depth, frame in enumerate(callstack.user_frames()):
            present = callstack.variables(frame)
            changes: dict[str, Any] = {}
            for (at, function, name), value in changed.items():
                if at != depth or function != frame.f_code.co_name or name not in present:
                    continue
                if not callable(value):
                    was = present[name]
                    if (was is None or _is_number(was)) and was != value:
                        changes[name] = value
                elif self.tensors and value() is not present[name]:
                    changes[name] = value()
            if changes:
                callstack.assign(frame, changes)
        self._read.update(self.values)


_NONE = object()

_NEVER = frozenset({str, type, FunctionType, BuiltinFunctionType, ModuleType})
"""What most global variables are, and what is never a number or a tensor."""


def _held(value: Any) -> Callable[[], Any]:
    return lambda: value


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _is_carried(value: Any) -> bool:
    """Whether ``value`` is a tensor, or a tuple of nothing but tensors, as an LSTM's state is."""
    if isinstance(value, tuple):
        return len(value) > 0 and all(_is_carried(part) for part in value)
    return isinstance(value, Tensor)


def planned_epochs() -> int:
    """Return what the calling thread's user frames call their number of epochs; 0 if nothing.

    A variable, or an attribute or entry of one (``args.epochs``, ``config["num_epochs"]``).
    """
    for frame in reversed(callstack.user_frames()):
        for name, value in _settings({**frame.f_globals, **callstack.variables(frame)}):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if whole and value > 0 and _EPOCHS.fullmatch(name):
                return int(value)
    return 0


_EPOCHS = re.compile(r"((num|n|nb|max|total|train|num_train)_?)?epochs", re.IGNORECASE)


def _settings(variables: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield variables, and what those of the user's own, or from a command line, hold."""
    for name, value in variables.items():
        yield name, value
        held = value if isinstance(value, dict) else getattr(value, "__dict__", None)
        plain = type(value).__module__ in ("__main__", "argparse", "types", "builtins")
        if plain and isinstance(held, dict) and not name.startswith("__"):
            yield from ((key, each) for key, each in list(held.items()) if isinstance(key, str))
