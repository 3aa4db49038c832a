"""Which line of the user's made an object."""

from __future__ import annotations

import weakref
from types import FrameType
from typing import Any

from nnaudit.report import Location
from nnaudit.targets import callstack


def birthplace(thing: Any) -> Location | None:
    """Return the user's line that is building ``thing``, called from within its ``__init__``.

    Frames of ``thing``'s own initialisers are passed over: what counts is who called them.
    """
    return callstack.user_line(unless=lambda frame: _initialises(frame, thing))


def _initialises(frame: FrameType, thing: Any) -> bool:
    code = frame.f_code
    if code.co_name != "__init__" or not code.co_varnames:
        return False
    return frame.f_locals.get(code.co_varnames[0]) is thing


class Register:
    """Objects in the order in which they were made, and where; it keeps none of them alive."""

    def __init__(self) -> None:
        self._made: list[tuple[weakref.ref[Any], Location | None]] = []
        self._places: dict[int, tuple[weakref.ref[Any], Location | None]] = {}

    def add(self, thing: Any) -> None:
        """Note that ``thing`` is being made; a second call for the same object does nothing."""
        known = self._places.get(id(thing))
        if known is not None and known[0]() is thing:
            return
        entry = (weakref.ref(thing), birthplace(thing))
        self._made.append(entry)
        self._places[id(thing)] = entry

    def __len__(self) -> int:
        return len(self._made)

    def all(self) -> list[Any | None]:
        """Return everything ever made, None for what is gone."""
        return [reference() for reference, _ in self._made]

    def alive(self) -> list[Any]:
        """Return what still exists."""
        return [thing for thing in self.all() if thing is not None]

    def place(self, thing: Any) -> Location | None:
        """Return where ``thing`` was made."""
        entry = self._places.get(id(thing))
        return entry[1] if entry is not None and entry[0]() is thing else None
