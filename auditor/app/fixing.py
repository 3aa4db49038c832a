"""Mends what the last audit of a target found, where one change of the source is certain to."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from nnaudit.app import runs
from nnaudit.errors import UsageError
from nnaudit.report import Report, Result
from nnaudit.reports.load import load
from nnaudit.targets.notebook import SUFFIX as NOTEBOOK


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
    run = runs.latest(target)
    (report,) = load(run.json)
    code = code.upper()
    result = next((result for result in report.results if result.code == code), None)
    if result is None or result.source is None or result.location is None:
        raise UsageError(f"the last audit of {report.target.label} names no line for {code}")
    file = Path(result.location.file)
    if file.suffix == NOTEBOOK:
        raise UsageError(f"{file} is a notebook, which only you can change. {result.fix}")
    before = _read(file)
    if not _is_as_audited(result, before):
        raise UsageError(f"{file} has changed since the audit: run `nnaudit {report.target.label}`")
    after = _fixed(result, before)
    if after is None:
        raise UsageError(f"{code}: no change of one line is certain to mend it. {result.fix}")
    return Fix(report, file, before, after)


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None


def _is_as_audited(result: Result, text: str) -> bool:
    assert result.source is not None
    first = result.source.first - 1
    now = text.splitlines()[first : first + len(result.source.lines)]
    return len(now) == len(result.source.lines) and all(
        line.startswith(quoted.rstrip())
        for line, quoted in zip(now, result.source.lines, strict=True)
    )


def _fixed(result: Result, text: str) -> str | None:
    try:
        from nnaudit.fixes import fixed
    except ModuleNotFoundError as error:
        if error.name != "libcst":
            raise
        raise UsageError(
            "changing source needs libcst: python -m pip install 'nnaudit[fix]'"
        ) from None
    return fixed(result, text)
