"""Mends what the last audit of a target found, where one change of the source is certain to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nnaudit.app import runs
from nnaudit.checks import catalog
from nnaudit.errors import UsageError
from nnaudit.report import Report, Result, Status
from nnaudit.reports.load import load
from nnaudit.targets.notebook import SUFFIX as NOTEBOOK

CODES = ("DATA104", "DIST103", "LOSS101", "NORM102", "STEP102", "STEP104")
"""The checks whose findings :mod:`nnaudit.fixes`, which needs libcst, may have a change for."""


@dataclass(frozen=True)
class Fix:
    """A change of one file; ``report`` is the audit that asked for it."""

    report: Report
    file: Path
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The change as a unified diff."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            f"a/{self.file}",
            f"b/{self.file}",
        )
        return "".join(lines)

    def apply(self) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written.
        """
        self.file.write_bytes(self.after.encode("utf-8"))


def find(code: str, target: str | None = None) -> Fix:
    """Return what mends the finding of the check ``code`` in the last audit of ``target``.

    Raises:
        UsageError: there is no such finding, the file changed since, or no one change is certain.
    """
    code = _code(code)
    report, result = _last_answer(code, target)
    if result is None or result.source is None or result.location is None:
        raise UsageError(f"the last audit of {report.target.label} names no line for {code}")
    file = Path(result.location.file)
    if file.suffix == NOTEBOOK:
        raise UsageError(f"{file} is a notebook, which only you can change. {result.fix}")
    before = _read(file)
    moved = _where_it_is_now(result, before)
    if moved is None:
        raise UsageError(f"{file} has changed since the audit: run `nnaudit {report.target.label}`")
    after = _fixed(moved, before)
    if after is None:
        yours = f" What to do: {result.fix}" if result.fix else ""
        raise UsageError(f"{code}: no change of one line is certain to mend it.{yours}")
    return Fix(report, file, before, after)


def certain(reports: Iterable[Report]) -> list[str]:
    """Return the codes of the findings that :func:`find` has a change for; none without libcst."""
    found = []
    for report in reports:
        for result in report.results:
            with suppress(UsageError):
                if _has_change(result):
                    found.append(result.code)
    return list(dict.fromkeys(found))


def _has_change(result: Result) -> bool:
    place, statuses = result.location, (Status.FAIL, Status.WARN, Status.NOTE)
    if place is None or result.status not in statuses or result.suppressed:
        return False
    if result.code not in CODES or place.file.endswith(NOTEBOOK) or result.source is None:
        return False
    return _fixed(result, _read(Path(place.file))) is not None


def _code(selector: str) -> str:
    """Return the code of the check with this code or name.

    Raises:
        UsageError: there is none.
    """
    try:
        return catalog.find(selector).code
    except LookupError as error:
        raise UsageError(str(error.args[0])) from None


def _last_answer(code: str, target: str | None) -> tuple[Report, Result | None]:
    """Return the last audit of the target that asked the check, and its answer.

    An audit after that asked others only, as one does that follows a fix.
    """
    latest = runs.latest(target)
    for run in reversed(runs.before(latest)):
        (report,) = load(run.json)
        for result in report.results:
            if result.code == code:
                return report, result
    return load(latest.json)[0], None


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None


def _where_it_is_now(result: Result, text: str) -> Result | None:
    """Return the result with the line at which what it quotes stands now; None where nowhere.

    Lines above it may have been added or taken out since; the quoted ones must be the same, and
    there once only if not in their old place.
    """
    source, place = result.source, result.location
    assert source is not None and place is not None
    lines = text.splitlines()
    starts = [at for at in range(len(lines)) if _quotes(source.lines, lines[at:])]
    old = source.first - 1
    if old in starts:
        return result
    if len(starts) != 1:
        return None
    line = place.line + starts[0] - old
    return result.model_copy(update={"location": place.model_copy(update={"line": line})})


def _quotes(quoted: Sequence[str], lines: Sequence[str]) -> bool:
    return len(lines) >= len(quoted) and all(
        line.startswith(each.rstrip()) for line, each in zip(lines, quoted, strict=False)
    )


def _fixed(result: Result, text: str) -> str | None:
    try:
        from libcst import ParserSyntaxError

        from nnaudit.fixes import fixed
    except ModuleNotFoundError as error:
        if error.name != "libcst":
            raise
        raise UsageError(
            "changing source needs libcst: python -m pip install 'nnaudit[fix]'"
        ) from None
    try:
        return fixed(result, text)
    except (ParserSyntaxError, RecursionError):
        raise UsageError(f"{result.code}: libcst cannot read the file") from None
