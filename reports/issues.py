"""Findings as the tools that review code know them: a line of a file, words, an identity.

SARIF, GitHub, GitLab and JUnit differ in their syntax; what they say of a finding is said here.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from dataclasses import dataclass
from pathlib import PureWindowsPath

from nnaudit.report import Change, Report, Result
from nnaudit.reports import outline
from nnaudit.reports.base import Options
from nnaudit.reports.outline import Finding
from nnaudit.reports.text import one_line, visible

#: No system has longer paths.
_PATH = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file; the path has forward slashes and is relative to the repository's root."""

    file: str
    line: int


def place(result: Result, report: Report, options: Options) -> Place:
    """Return where a finding is shown: its own line, else the first line of the target's file."""
    if (location := result.location) is None:
        return Place(target_file(report, options), 1)
    return Place(_in_repository(location.file, options.folder), max(1, location.line))


def target_file(report: Report, options: Options) -> str:
    """Return the target's file, named as in :func:`place`."""
    return _in_repository(report.target.path or report.target.name, options.folder)


def _in_repository(file: str, folder: str) -> str:
    slashed = PureWindowsPath(file).as_posix() if "\\" in file else file
    return visible(posixpath.normpath(posixpath.join(folder, slashed)), _PATH)


class Fingerprints:
    """Tells the findings of one file from each other: 64 hex digits that stay when lines move.

    Two audits of one target in a file would say the same of the same finding: the later one's is
    told apart by its number.
    """

    def __init__(self) -> None:
        self._given: Counter[tuple[str, ...]] = Counter()

    def __call__(self, result: Result, report: Report) -> str:
        """Return the fingerprint of ``result``, a finding of ``report``."""
        identity = (report.target.label, result.code, result.name, result.module)
        self._given[identity] += 1
        number = self._given[identity]
        words = identity if number == 1 else (*identity, str(number))
        return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()


def facts(result: Result) -> tuple[tuple[str, str], ...]:
    """Return the labelled facts of a result that are not empty, each on one line."""
    location = result.location
    every = (
        ("measured", result.measured),
        ("threshold", result.threshold),
        ("where", f"{location.file}:{location.line}" if location else ""),
        ("module", result.module),
        ("crash", outline.CRASHES[result.crash]),
        ("fix", result.fix),
        ("caused by", result.cause),
        ("baseline", outline.CHANGES[result.change] if result.change else ""),
        ("suppressed", result.suppressed),
    )
    return tuple((label, one_line(text)) for label, text in every if text)


def sentence(finding: Finding) -> str:
    """Return a finding as one paragraph: message, fix, what follows from it, what is known."""
    result = finding.result
    parts = [one_line(result.message)]
    if result.fix:
        parts.append(f"Fix: {one_line(result.fix)}")
    if finding.consequences:
        names = ", ".join(one_line(outline.title(other)) for other in finding.consequences)
        parts.append(f"Leads to {names}.")
    if result.suppressed:
        parts.append(f"Suppressed: {one_line(result.suppressed)}")
    elif result.change not in (None, Change.NEW):
        parts.append(f"({outline.CHANGES[result.change]})")
    return " ".join(parts)


def suppressed(report: Report) -> tuple[Finding, ...]:
    """Return the suppressed findings: they are listed, each for itself."""
    return tuple(Finding(result) for result in report.suppressed)


def closing(report: Report) -> str:
    """Return the verdict on a target, with what no finding tells: suppressed, new, fixed."""
    hidden = "; ".join(
        f"{one_line(outline.title(finding.result))} is suppressed: "
        f"{one_line(finding.result.suppressed)}"
        for finding in suppressed(report)
    )
    since = "; ".join(f"{item.label}: {one_line(item.text)}" for item in outline.since(report))
    return "; ".join(part for part in (outline.verdict(report).headline, hidden, since) if part)
