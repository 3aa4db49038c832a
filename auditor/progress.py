"""What is said while an audit goes on, on stderr. Must not import torch.

A terminal shows a bar, a notebook's cell a line; elsewhere, as in a CI log, there is a line now
and then.
"""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType
from typing import Self

from nnaudit.engine.job import Answered, Asking, Event, Measuring, Question, Started
from nnaudit.engine.record import FINDINGS, Record
from nnaudit.report import Result
from nnaudit.reports.text import one_line

INTERVAL = 15.0
"""Seconds between two lines where there is no terminal."""

_BLINK = 0.2
"""Seconds for which a line in a notebook can be read at least."""


class Progress:
    """Shows what is being asked, for the time of a ``with`` block."""

    def __init__(self, title: str, *, findings: bool = False) -> None:
        """``title`` names the target; with ``findings`` each is told as soon as it is certain."""
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._title = one_line(title)
        self._findings = findings
        self._console = Console(file=sys.stderr, stderr=True)
        self._has_bar = sys.stderr.isatty() and not self._console.is_jupyter
        self._cell = _Cell() if self._console.is_jupyter else None
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._has_bar,
        )
        self._task = self._bar.add_task(f"loading {escape(self._title)}", total=None)
        self._total = self._done = 0
        self._last_line = time.monotonic()

    def take(self, event: Event, record: Record) -> None:
        """Move on by ``event``."""
        match event:
            case Started(questions=questions):
                self._total = len(questions)
                self._bar.update(self._task, total=self._total)
            case Asking(code=code):
                name = next((q.name for q in _questions(record) if q.code == code), "")
                self._at(f"{code} {name}")
            case Measuring(probe=probe, begins=True):
                self._at(_spelled(probe))
            case Answered(result=result):
                self._done += 1
                self._bar.advance(self._task)
                if self._findings and result.status in FINDINGS and not result.suppressed:
                    self._say(_told(result))

    def _at(self, place: str) -> None:
        self._bar.update(self._task, description=place)
        if self._cell:
            self._cell.show(f"{self._title}: {self._done} of {self._total} checks, now {place}")
        elif not self._has_bar and time.monotonic() - self._last_line >= INTERVAL:
            self._say(f"{self._done} of {self._total} checks answered, now {one_line(place)}")

    def _say(self, line: str) -> None:
        """Write a line above the bar, or where there is none as it is.

        It begins with a blank: a CI log obeys commands at the beginning of a line only.
        """
        self._last_line = time.monotonic()
        self._console.print(
            f"  {self._title}: {line}", markup=False, highlight=False, soft_wrap=True
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._cell:
            self._cell.clear()


class _Cell:
    """A line in the output of a notebook's cell that is written over. Needs no widgets."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display(_as_text(""), raw=True, display_id=True)
        self._shown_at = 0.0

    def show(self, line: str) -> None:
        """Write ``line``, unless another was written a moment ago."""
        if (now := time.monotonic()) - self._shown_at >= _BLINK:
            self._handle.update(_as_text(one_line(line)), raw=True)
            self._shown_at = now

    def clear(self) -> None:
        """Leave nothing."""
        self._handle.update(_as_text(""), raw=True)


def _as_text(line: str) -> dict[str, str]:
    return {"text/plain": line}


def _spelled(probe: str) -> str:
    """Return the name of a probe, ``EpochOrder``, in words; what is in words already, as it is."""
    if not probe.isidentifier():
        return probe
    return f"measuring {re.sub(r'(?<=[a-z0-9])(?=[A-Z])', ' ', probe).lower()}"


def _told(result: Result) -> str:
    words = (result.status.value, result.code, f"{result.name}:", result.message)
    return " ".join(one_line(word) for word in words)


def _questions(record: Record) -> tuple[Question, ...]:
    return record.started.questions if record.started else ()
