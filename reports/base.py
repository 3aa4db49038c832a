"""What every output format has in common: a pure function from reports to text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, Protocol, TextIO

from nnaudit.report import Report, Status


class Verbosity(IntEnum):
    """How much a person asked to read."""

    QUIET = -1
    NORMAL = 0
    VERBOSE = 1


@dataclass(frozen=True, slots=True)
class Options:
    """How to write a report. A format takes what concerns it and ignores the rest.

    ``folder`` is where the audit was started, seen from the root of the repository: what formats
    that name files by their place in a repository put before a relative path. ``failing`` are the
    statuses that fail a build.
    """

    verbosity: Verbosity = Verbosity.NORMAL
    width: int = 80
    color: bool = False
    encoding: str = "utf-8"
    folder: str = ""
    failing: tuple[Status, ...] = (Status.FAIL,)

    def for_stream(
        self,
        stream: TextIO,
        *,
        color: Literal["auto", "always", "never"] = "auto",
        environ: Mapping[str, str] = os.environ,
    ) -> Options:
        """Return these options with what ``stream`` can show: its width, colours, encoding."""
        colored = color == "always" or (color == "auto" and _wants_color(stream, environ))
        return replace(
            self,
            width=shutil.get_terminal_size((80, 24)).columns,
            color=colored,
            encoding=stream.encoding or "utf-8",
        )


class Renderer(Protocol):
    """Writes the reports of one or several targets in one format."""

    def __call__(self, reports: Sequence[Report], options: Options) -> str:
        """Return the whole output, ending in a line feed."""
        ...


def _wants_color(stream: TextIO, environ: Mapping[str, str]) -> bool:
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"
