"""Which of a script's training loops is which, where it has several.

Pre-training and training, a teacher and its student, a head and then the whole network, folds of
a cross-validation: only one loop is audited, and its author should know which. Two loops are told
apart by what is certain: they stand at different places of the script, or the second one trains
with an optimizer that was made after the first had begun.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from nnaudit.report import Location
from nnaudit.targets import callstack
from nnaudit.targets.source import Call, source_of


@dataclass(frozen=True)
class CallSite:
    """Where in the user's files a training takes place.

    Attributes:
        calls: file and line of every call on the way to the loop, and then of the loop statement,
            the outermost one there is: its body may train at several lines, and in functions.
        loops: the last of ``calls`` is a loop statement. A framework's loop is not the user's.
    """

    calls: tuple[tuple[str, int], ...] = ()
    loops: bool = False


def place() -> CallSite:
    """Return where the calling thread is."""
    calls = []
    for frame in callstack.user_frames():
        file, line = frame.f_code.co_filename, frame.f_lineno
        loops = source_of(file).loops_at(line)
        calls.append((file, loops[0].lineno if loops else line))
        if loops:
            return CallSite(tuple(calls), loops=True)
    # No loop of the user's: a framework calls the user's functions, and who called it counts.
    return CallSite(tuple((f.f_code.co_filename, f.f_lineno) for f in callstack.calling_frames()))


@dataclass
class LoopTracker:
    """Counts the training loops that a script comes to.

    Attributes:
        number: how many optimizers have stepped in so far, the one the script is in included.
    """

    number: int = 0
    _stepped: bool = False
    _place: CallSite = field(default_factory=CallSite)
    _made: int = 0
    _lines: set[tuple[str, int]] = field(default_factory=set)

    def enter(self, at: CallSite, made: int) -> bool:
        """Note that training may take place ``at``, ``made`` optimizers having been made by now.

        Returns whether that would be another loop than the one before.
        """
        another = self._stepped and (at != self._place or made > self._made)
        if another or not self._stepped:
            self._stepped, self._place, self._made = False, at, made
        return another

    def step(self, made: int) -> None:
        """Note that an optimizer steps."""
        if not self._stepped:
            self._stepped, self._made = True, made
            self.number += 1

    def remember(self) -> None:
        """Note the lines that back-propagate for the first step of a loop that is passed by."""
        if not self._stepped:
            self._lines |= {(f.f_code.co_filename, f.f_lineno) for f in callstack.user_frames()}

    def leave_behind(self, backwards: Iterable[Location]) -> None:
        """Note the lines that back-propagated in a loop that is not the one to be audited."""
        self._lines |= {(where.file, where.line) for where in backwards}

    def past(self, script: Path) -> set[int]:
        """Return the lines of ``script`` that were at work in the loops passed by."""
        return {line for file, line in self._lines if file == str(script)}

    @property
    def current(self) -> int:
        """The number of the loop that the script is in, or is about to come to."""
        return self.number if self._stepped else self.number + 1


def elsewhere(
    script: Path, at: CallSite, backwards: Collection[int], past: Collection[int] = ()
) -> dict[str, tuple[int, ...]]:
    """Return what else the text of ``script`` trains by than the loop ``at``, where that runs.

    By the name of what is called, the lines that call it: ``backward`` where it is part of no
    function of the audited loop, nor of one that nothing speaks of, and functions that lead to the
    loop and are called again. ``backwards`` are the lines that back-propagated in the loop's first
    step, ``past`` those that were at work in earlier loops.
    """
    source, frames = source_of(script), callstack.user_frames()
    leading = [frame for frame in frames[: len(at.calls)] if _is_of(frame, script)]
    below = {_function(frame) for frame in frames[len(at.calls) :] if _is_of(frame, script)}
    below |= {call.function for call in source.calls if call.line in backwards}
    # Whatever the functions do that the loop calls, they do as part of it: other branches, say.
    below -= {_function(frame) for frame in leading}
    loop = at.calls[-1] if at.loops else None
    outside = [
        call
        for call in source.calls
        if loop != (str(script), call.loop) and not any(map(call.spans, past))
    ]
    found = {
        "backward": [
            call
            for call in outside
            if call.name == "backward" and call.function not in below and call.line not in backwards
            if source.is_mentioned(call.function)
        ]
    }
    for frame in leading:
        names = _led_to(frames, frame)
        for here in source.calls_at(frame.f_lineno):
            if here.name in names and (here.name != "train" or not here.receiver):
                found[here.name] = [
                    call
                    for call in outside
                    if (call.name, bool(call.receiver)) == (here.name, bool(here.receiver))
                    and (here.name not in _FITS or _trains_like(call, here))
                    and not call.spans(frame.f_lineno)
                ]
    return {
        name: tuple(sorted({call.line for call in calls})) for name, calls in found.items() if calls
    }


_FITS = frozenset({"fit", "fit_one_cycle"})
"""Methods of frameworks that train; ``train`` and ``run`` are too often something else."""


def _led_to(frames: list[FrameType], frame: FrameType) -> frozenset[str]:
    """Return the names under which ``frame`` may have called what trains."""
    inner = frames[frames.index(frame) + 1 :]
    return _FITS | {inner[0].f_code.co_name} if inner else _FITS


def _trains_like(call: Call, other: Call) -> bool:
    """Whether a ``fit`` is another network's, and not a scaler's or a tree's."""
    receiver = call.receiver.lower()
    return call.receiver == other.receiver or "train" in receiver or "learn" in receiver


def _function(frame: FrameType) -> int:
    """Return the first line of the function that ``frame`` runs; 0 for the file itself."""
    return 0 if callstack.is_module(frame) else frame.f_code.co_firstlineno


def _is_of(frame: FrameType, script: Path) -> bool:
    return frame.f_code.co_filename == str(script)
