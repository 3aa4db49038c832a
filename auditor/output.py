"""Where reports go: formats, files, the terminal. Must not import torch."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

from nnaudit.errors import UsageError
from nnaudit.report import Report
from nnaudit.reports import FORMATS, Options, Verbosity

SUFFIXES = {".html": "html", ".htm": "html", ".json": "json", ".txt": "text"}

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
    verbosity: Verbosity

    @classmethod
    def parse(
        cls,
        formats: Sequence[str],
        file: Path | None,
        *,
        color: str = "auto",
        quiet: bool = False,
        verbose: bool = False,
    ) -> Self:
        """Read ``--output-format`` and ``--output-file``.

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
            _require_folder(destination.path)
        level = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
        return cls(tuple(destinations), cast(Color, color), level)

    def write(self, reports: Sequence[Report]) -> None:
        """Render ``reports`` into every destination.

        Raises:
            UsageError: a file cannot be written.
        """
        if not reports:
            return
        for destination in self.destinations:
            render = FORMATS[destination.format]
            if destination.path is None:
                options = Options.for_stream(sys.stdout, color=self.color, verbosity=self.verbosity)
                sys.stdout.write(render(reports, options))
                sys.stdout.flush()
            else:
                _write(destination.path, render(reports, Options(verbosity=self.verbosity)))

    def page(self, reports: Sequence[Report]) -> Path | None:
        """Return where the HTML report lies.

        Where none was asked for and a person reads the terminal report, one is written to the
        cache folder; None when that is not possible.
        """
        for destination in self.destinations:
            if destination.format == "html" and destination.path is not None:
                return destination.path
        if self.destinations != (Destination("text", None),):
            return None
        path = cache_folder() / f"{Path(reports[0].target.name).stem or 'report'}.html"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, FORMATS["html"](reports, Options()))
        except (OSError, UsageError):
            return None
        return path


def cache_folder() -> Path:
    """Return ``NNAUDIT_CACHE``, else nnaudit's folder in the user's cache."""
    if chosen := os.environ.get("NNAUDIT_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nnaudit"


def _destination(text: str) -> Destination:
    name, _, path = text.partition(":")
    if name not in FORMATS:
        raise UsageError(f"no output format {name!r}: there are {', '.join(FORMATS)}")
    return Destination(name, Path(path) if path else None)


def _with_file(destinations: list[Destination], file: Path) -> list[Destination]:
    if not destinations:
        return [Destination(SUFFIXES.get(file.suffix.lower(), "text"), file)]
    homeless = [d for d in destinations if d.path is None]
    if len(homeless) != 1:
        raise UsageError(
            f"--output-file {file} needs exactly one --output-format without a file of its own"
        )
    return [Destination(d.format, d.path or file) for d in destinations]


def _require_folder(path: Path | None) -> None:
    """Say so now, not after the audit, when a file's folder does not exist."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")


def _write(path: Path, text: str) -> None:
    """Write whole or not at all: a report that was there before survives a full disk."""
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
