"""Where reports go: formats, files, the terminal. Must not import torch."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

from nnaudit.errors import UsageError
from nnaudit.report import Report, Status
from nnaudit.reports import FORMATS, format_of
from nnaudit.reports.base import Options, Renderer, Verbosity

SUMMARY = "GITHUB_STEP_SUMMARY"
"""The variable in which GitHub names the file that a job's summary is appended to."""

ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR", "WORKSPACE")
"""Variables in which GitHub, GitLab and Jenkins name the folder of the checked-out repository."""

_SOURCES = (".py", ".pyi", ".ipynb", ".toml", ".yaml", ".yml")
"""What a person writes: a file that exists and is called so is not replaced by a report."""

WRITE_EVERY = 2.0
"""Seconds between two states of a report that grows."""

Color = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Destination:
    """One format and the file it goes to; None is stdout."""

    format: str
    path: Path | None


@dataclass(frozen=True)
class Output:
    """What to write where."""

    destinations: tuple[Destination, ...]
    color: Color
    options: Options

    @classmethod
    def parse(
        cls,
        formats: Sequence[str],
        file: Path | None,
        *,
        color: str = "auto",
        quiet: bool = False,
        verbose: bool = False,
        fail_on: str = "fail",
        sources: Sequence[str] = (),
    ) -> Self:
        """Read ``--output-format`` and ``--output-file``; ``fail_on`` is the mildest failure.

        ``sources`` are files that no report may replace: what is audited.

        Raises:
            UsageError: a format does not exist, two go to stdout, or a file cannot be written.
        """
        destinations = [_destination(text) for text in formats]
        if file is not None:
            destinations = _with_file(destinations, file)
        destinations = destinations or [Destination("text", None)]
        if sum(d.path is None for d in destinations) > 1:
            raise UsageError(
                "two formats go to stdout: give all but one a file, as in html:report.html"
            )
        for destination in destinations:
            _require_writable(destination.path, sources)
        level = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
        failing = (Status.FAIL, Status.WARN) if fail_on == "warn" else (Status.FAIL,)
        options = Options(verbosity=level, folder=_folder(), failing=failing)
        return cls(tuple(destinations), cast(Color, color), options)

    def write(self, reports: Sequence[Report], *, text: Renderer = FORMATS["text"]) -> None:
        """Render ``reports`` into every destination; ``text`` writes the one for the terminal.

        Raises:
            UsageError: a file cannot be written.
        """
        if not reports:
            return
        for destination in self.destinations:
            render = text if destination.format == "text" else FORMATS[destination.format]
            if destination.path is None:
                options = self.options.for_stream(sys.stdout, color=self.color)
                sys.stdout.write(render(reports, options))
                sys.stdout.flush()
            else:
                write(destination.path, render(reports, self.options))
            if destination.format == "github" and (summary := os.environ.get(SUMMARY)):
                _append(Path(summary), FORMATS["markdown"](reports, self.options))

    @property
    def page(self) -> Path | None:
        """Where the HTML report goes that was asked for."""
        paths = [d.path for d in self.destinations if d.format == "html" and d.path is not None]
        return paths[0] if paths else None

    @property
    def is_for_a_person(self) -> bool:
        """Whether nothing was asked for but the report on the terminal."""
        return self.destinations == (Destination("text", None),)


class Growing:
    """The reports of an audit that is under way, written to the JSON files that were asked for.

    An audit that is killed has so written what it knew.
    """

    def __init__(self, output: Output) -> None:
        self._paths = [d.path for d in output.destinations if d.format == "json" and d.path]
        self._options = output.options
        self._known: dict[int, Callable[[], Report]] = {}
        self._written = -math.inf
        self._lock = threading.Lock()

    def take(self, number: int, known: Callable[[], Report]) -> None:
        """Take in what makes a report of what is known by now of the target with that ``number``.

        It is made when the files are written, at most every :data:`WRITE_EVERY` seconds: both cost
        time, too.
        """
        with self._lock:
            self._known[number] = known
            if not self._paths or time.monotonic() - self._written < WRITE_EVERY:
                return
            reports = [self._known[number]() for number in sorted(self._known)]
            text = FORMATS["json"](reports, self._options)
            for path in self._paths:
                if path.is_file() or not path.exists():  # not to a pipe, which is read as it comes
                    write(path, text)
            self._written = time.monotonic()


def _folder() -> str:
    """Return where we are in the repository, with forward slashes; nothing at its root."""
    here = Path.cwd()
    named = [Path(value).resolve() for name in ROOTS if (value := os.environ.get(name))]
    found = [folder for folder in (here, *here.parents) if (folder / ".git").exists()]
    for root in (*named, *found):
        if here.is_relative_to(root):
            return "" if here == root else here.relative_to(root).as_posix()
    return ""


def _destination(text: str) -> Destination:
    name, _, path = text.partition(":")
    if name not in FORMATS:
        raise UsageError(f"no output format {name!r}: there are {', '.join(FORMATS)}")
    return Destination(name, Path(path) if path else None)


def _with_file(destinations: list[Destination], file: Path) -> list[Destination]:
    if not destinations:
        return [Destination(format_of(file) or "text", file)]
    homeless = [d for d in destinations if d.path is None]
    if len(homeless) != 1:
        raise UsageError(
            f"--output-file {file} needs exactly one --output-format without a file of its own"
        )
    return [Destination(d.format, d.path or file) for d in destinations]


def _require_writable(path: Path | None, sources: Sequence[str]) -> None:
    """Say so now, not after the audit, when a report cannot go where it should."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    audited = path.exists() and any(
        Path(source).exists() and path.samefile(source) for source in sources
    )
    if path.exists() and (audited or path.suffix in _SOURCES):
        raise UsageError(
            f"{path} would be overwritten by the report: name another file, as in -o report.html"
        )


def write(path: Path, text: str) -> None:
    """Write whole or not at all: a report that was there before survives a full disk.

    Raises:
        UsageError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        return _append(path, text)  # a device or a pipe, such as /dev/stderr
    path = path.resolve()  # a link stays one, and what it leads to is written
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
