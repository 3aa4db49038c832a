"""The progress bar: on stderr, and only where that is a terminal. Must not import torch."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from nnaudit.engine.job import Answered, Asking, Event, Measuring, Question, Started
from nnaudit.engine.record import Record


class Progress:
    """Shows what is being asked, for the time of a ``with`` block."""

    def __init__(self, title: str) -> None:
        """``title`` names the target."""
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(file=sys.stderr, stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(f"loading {escape(title)}", total=None)

    def take(self, event: Event, record: Record) -> None:
        """Move on by ``event``."""
        match event:
            case Started(questions=questions):
                self._bar.update(self._task, total=len(questions))
            case Asking(code=code):
                name = next((q.name for q in _questions(record) if q.code == code), "")
                self._bar.update(self._task, description=f"{code} {name}")
            case Measuring(probe=probe, begins=True):
                self._bar.update(self._task, description=probe)
            case Answered():
                self._bar.advance(self._task)

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


def _questions(record: Record) -> tuple[Question, ...]:
    return record.started.questions if record.started else ()
