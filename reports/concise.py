"""One line for each finding, ``file:line: CODE severity message``: what editors and grep read."""

from __future__ import annotations

from collections.abc import Sequence

from nnaudit.report import Report, Status
from nnaudit.reports import outline
from nnaudit.reports.base import Options, Verbosity
from nnaudit.reports.issues import closing, sentence
from nnaudit.reports.outline import Finding
from nnaudit.reports.text import one_line

_SEVERITIES = {Status.FAIL: "error", Status.ERROR: "error", Status.WARN: "warning"}
"""The words that problem matchers know; what asks for less is ``info``."""


def render(reports: Sequence[Report], options: Options) -> str:
    """Return the findings of all targets, worst first, then a line with each target's verdict.

    A finding without a line of its own is told at the first line of its target's file.
    """
    every = [(report, finding) for report in reports for finding in outline.ordered(report)]
    every.sort(key=lambda pair: outline.rank(pair[1].result))
    lines = [
        _line(report, finding)
        for report, finding in every
        if options.verbosity is not Verbosity.QUIET or _severity(finding) == "error"
    ]
    lines += [
        f"{one_line(report.target.label)}: {closing(report)}"
        for report in reports
        if options.verbosity is not Verbosity.QUIET
    ]
    return "\n".join(lines or [outline.verdict_of_all(reports).headline]) + "\n"


def _line(report: Report, finding: Finding) -> str:
    result = finding.result
    place = result.location
    where = f"{place.file}:{place.line}" if place else f"{_target(report)}:1"
    words = f"{one_line(result.code)} {_severity(finding)} {one_line(result.name)}"
    return f"{one_line(where)}: {words}: {sentence(finding)}"


def _target(report: Report) -> str:
    return report.target.path or report.target.name


def _severity(finding: Finding) -> str:
    result = finding.result
    return _SEVERITIES.get(result.status, "info") if result.is_new else "info"
