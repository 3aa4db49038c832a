"""The numbers that a paused script counts with: ``step``, ``iter_num``, ``tokens_seen``.

They live in the local and global variables of the user's functions. A learning rate computed from
``iter_num`` makes two runs from the same weights differ, and ``while step < max_steps`` ends, so
these numbers belong to the state of a run: :class:`Counters` copies them to a dictionary, which a
snapshot keeps like any other, and writes back what a restored snapshot has changed there.
"""

from __future__ import annotations

import ctypes
import sys
from types import FrameType
from typing import Any

from nnaudit.loop.script.origins import is_users

Key = tuple[int, str, str]
"""Depth among the user's frames, outermost first; the function's name; the variable."""


FLOOR = "nnaudit_runs_the_script"
"""A local variable by which the frame is known from which a run was started."""


class Counters:
    """Numbers in the frames of a script that is paused at the same line again and again.

    Attributes:
        values: what they were at the last pause, or at the time of the snapshot since restored.
    """

    def __init__(self) -> None:
        self.values: dict[Key, int | float | bool] = {}
        self._present: dict[Key, int | float | bool] = {}

    def read(self) -> None:
        """Copy the numbers of the calling thread's user frames."""
        self._present = {
            (depth, frame.f_code.co_name, name): value
            for depth, frame in enumerate(user_frames())
            for name, value in _variables(frame).items()
            if isinstance(value, (bool, int, float)) and not name.startswith("__")
        }
        self.values.clear()
        self.values.update(self._present)

    def write(self) -> None:
        """Give the variables the values of :attr:`values` where these are others."""
        for depth, frame in enumerate(user_frames()):
            changes = {
                name: value
                for (at, function, name), value in self.values.items()
                if at == depth
                and function == frame.f_code.co_name
                and self._present.get((at, function, name), value) != value
            }
            if changes:
                _assign(frame, changes)
        self._present.update(self.values)


def user_frames() -> list[FrameType]:
    """Return the innermost run's frames in the user's files, outermost first."""
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and FLOOR not in frame.f_code.co_varnames:
        if is_users(frame.f_code.co_filename):
            frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def _variables(frame: FrameType) -> dict[str, Any]:
    return frame.f_globals if frame.f_code.co_name == "<module>" else frame.f_locals


def _assign(frame: FrameType, changes: dict[str, Any]) -> None:
    frame.f_locals.update(changes)
    if sys.version_info < (3, 13) and frame.f_code.co_name != "<module>":
        # Until 3.13 ``f_locals`` of a function is a copy, which this call writes back.
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
