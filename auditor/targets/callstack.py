"""Who called: the one place that walks the call stack.

A walk goes from the innermost frame outwards. It ends where nnaudit runs the user's script, and it
tells nnaudit's own frames from each other by the code objects that were registered here, so that
neither a file's name nor a variable's decides anything.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto
from types import CodeType, FrameType
from typing import Any, TypeVar

from nnaudit.errors import is_ours, is_user
from nnaudit.report import Location


class Role(Enum):
    """What a registered function of nnaudit's is, to those that find it on the stack."""

    RUNS = auto()
    """It runs the user's script: what is further out is not the script's."""

    REPEATS = auto()
    """It runs a script once more only to go on with it: what that does on the way, such as
    seeding, it has done before. It ends a walk as :attr:`RUNS` does."""

    SEEDS = auto()
    """It stands in for a function that seeds, and goes on to that function."""

    STANDS_IN = auto()
    """It stands in for any other function of a library, and goes on to that function."""


_Function = TypeVar("_Function", bound=Callable[..., Any])

_REGISTERED: dict[int, tuple[CodeType, Role]] = {}
"""By the id of a code object: equal functions of two files have code objects that compare equal."""

_ENDS = (Role.RUNS, Role.REPEATS)


def registered(role: Role) -> Callable[[_Function], _Function]:
    """Return a decorator that registers a function for what ``role`` says.

    It belongs below ``functools.wraps``, whose result has the code object of what it decorates.
    """

    def register(function: _Function) -> _Function:
        code = function.__code__
        _REGISTERED[id(code)] = code, role
        return function

    return register


def role_of(frame: FrameType) -> Role | None:
    """Return what the function that ``frame`` runs is registered for."""
    entry = _REGISTERED.get(id(frame.f_code))
    return entry[1] if entry is not None else None


@registered(Role.RUNS)
def run(function: Callable[..., Any], *args: Any) -> None:
    """Call what runs the user's script, as its outermost frame."""
    function(*args)


@registered(Role.REPEATS)
def run_again(function: Callable[..., Any], *args: Any) -> None:
    """Call what runs the user's script once more, only to go on with it."""
    function(*args)


# --- walks ----------------------------------------------------------------------------------------


def frames() -> Iterator[FrameType]:
    """Yield the calling thread's frames, innermost first, up to where the script is run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and role_of(frame) not in _ENDS:
        if frame.f_globals is not globals():
            yield frame
        frame = frame.f_back


def user_frames() -> list[FrameType]:
    """Return the innermost run's frames in the user's files, outermost first."""
    return [frame for frame in frames() if is_user(frame.f_code.co_filename)][::-1]


def calling_frames() -> list[FrameType]:
    """Return the user's frames between which no other code stands, outermost first.

    Of a framework's loop they are those that called the framework, and not what it calls.
    """
    found: list[FrameType] = []
    for frame in frames():
        if is_user(frame.f_code.co_filename):
            found.append(frame)
        else:
            found.clear()
    return found[::-1]


def user_line(unless: Callable[[FrameType], bool] | None = None) -> Location | None:
    """Return the innermost line of the user's, of frames that are not passed over by ``unless``."""
    for frame in frames():
        if is_user(frame.f_code.co_filename) and not (unless is not None and unless(frame)):
            return location(frame)
    return None


def own_call(through: Role | None = None, *, repeated: bool = True) -> list[FrameType]:
    """Return the user's frames, outermost first, that called the module that asks.

    A library may stand in between, and so may functions of nnaudit's with the role ``through``; at
    any other frame of nnaudit's the walk ends, since what that calls is no call of the user's own.
    Without ``repeated`` there are none where a script is run again only to go on with it.
    """
    asking = sys._getframe(1).f_globals
    found: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name, role = frame.f_code.co_filename, role_of(frame)
        passed = frame.f_globals is asking or (role is not None and role is through)
        if is_user(name):
            found.append(frame)
        elif is_ours(name) and not passed:
            return [] if role is Role.REPEATS and not repeated else found[::-1]
        frame = frame.f_back
    return found[::-1]


def caller(through: Role | None = None) -> FrameType | None:
    """Return who called the module that asks, functions with the role ``through`` passed over."""
    asking = sys._getframe(1).f_globals
    for frame in frames():
        role = role_of(frame)
        if frame.f_globals is not asking and (role is None or role is not through):
            return frame
    return None


def receivers() -> Iterator[Any]:
    """Yield what the methods on the stack belong to, innermost first, each once."""
    seen: set[int] = set()
    for frame in frames():
        owner = receiver(frame)
        if owner is not None and id(owner) not in seen:
            seen.add(id(owner))
            yield owner


# --- one frame ------------------------------------------------------------------------------------


def location(frame: FrameType) -> Location:
    """Return the line that ``frame`` is at."""
    return Location(file=frame.f_code.co_filename, line=frame.f_lineno)


def is_module(frame: FrameType) -> bool:
    """Whether ``frame`` runs a file itself, and no function of it."""
    return frame.f_code.co_name == "<module>"


def receiver(frame: FrameType) -> Any:
    """Return the ``self`` of the method that ``frame`` runs; None where it runs no method."""
    code = frame.f_code
    if code.co_argcount and code.co_varnames[0] == "self":
        return frame.f_locals.get("self")
    return None


def variables(frame: FrameType) -> dict[str, Any]:
    """Return the variables of the function, or of the file, that ``frame`` runs."""
    return frame.f_globals if is_module(frame) else frame.f_locals


def assign(frame: FrameType, changes: Mapping[str, Any]) -> None:
    """Give variables of ``frame`` other values."""
    frame.f_locals.update(changes)
    if sys.version_info < (3, 13) and not is_module(frame):
        # Until 3.13 ``f_locals`` of a function is a copy, which this call writes back.
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
