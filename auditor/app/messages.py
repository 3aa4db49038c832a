"""What is said on standard error, and how every error becomes one sentence and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import click

OK, FINDINGS, USAGE, OWN_FAULT, USER_CRASH = range(5)
"""Exit codes: clean; findings; usage or unusable target; bug in nnaudit; user's code crashed."""


class ErrorsAsSentences:
    """Turns every error in a ``with`` block into a sentence and the exit code it stands for."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, click.ClickException):
            return
        from nnaudit.errors import NnauditError, describe

        if isinstance(error, NnauditError):
            stop(str(error), error.exit_code)
        if isinstance(error, BrokenPipeError):
            _without_reader()
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            stop(f"{where}{error.strerror or error}", USAGE)
        *_, last = traceback.extract_tb(error.__traceback__)
        place = f"{Path(last.filename).name}:{last.lineno}"
        stop(f"bug in nnaudit: {describe(error)} at {place}; please report it", OWN_FAULT)


def _without_reader() -> NoReturn:
    """End quietly: nobody reads standard output any more, as when it goes to ``head``."""
    # What is still in the buffer would be written, and raise, as Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(OK)


def tell(message: str) -> None:
    """Say ``message`` on stderr, with nothing in it that a terminal or a CI log would obey."""
    from nnaudit.reports.text import one_line

    click.echo(f"nnaudit: {one_line(message)}", err=True)


def quote(text: str) -> None:
    """Show on stderr what a program under audit has written, indented.

    So no line of it is one that a CI log obeys: ``::error::`` counts at a line's beginning only.
    """
    from nnaudit.reports.text import TEXT_LIMIT, visible

    for line in visible(text.rstrip(), TEXT_LIMIT).splitlines():
        click.echo(f"  {line}", err=True)


def stop(message: str, code: int) -> NoReturn:
    """Say ``message`` on stderr and end the process with ``code``."""
    tell(message)
    sys.exit(code)
