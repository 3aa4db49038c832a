"""GitHub's workflow commands: annotations at the line, worst first, in a job's log."""

from __future__ import annotations

from collections.abc import Sequence

from nnaudit.report import Report, Status
from nnaudit.reports import outline
from nnaudit.reports.base import Options
from nnaudit.reports.issues import closing, place, sentence
from nnaudit.reports.outline import Finding, title
from nnaudit.reports.text import one_line

#: GitHub shows ten annotations of a kind for a step and drops the others without a word.
LIMIT = 10

_COMMANDS = {Status.FAIL: "error", Status.ERROR: "error", Status.WARN: "warning"}


def render(reports: Sequence[Report], options: Options) -> str:
    """Return the annotations of all targets, then the verdicts with what has no annotation."""
    every = [(report, finding) for report in reports for finding in outline.ordered(report)]
    every.sort(key=lambda pair: outline.rank(pair[1].result))
    lines = [_annotation(finding, report, options) for report, finding in every[:LIMIT]]
    lines += [_plain(f"nnaudit: {_name(report)}: {closing(report)}") for report in reports]
    if rest := every[LIMIT:]:
        names = ", ".join(one_line(title(finding.result)) for _, finding in rest)
        lines.append(_plain(f"nnaudit: {len(rest)} more without an annotation: {names}"))
    return "\n".join(lines or ["nnaudit: no target was audited."]) + "\n"


def _annotation(finding: Finding, report: Report, options: Options) -> str:
    result = finding.result
    command = _COMMANDS.get(result.status, "notice") if result.is_new else "notice"
    where = place(result, report, options)
    properties = {
        "file": where.file,
        "line": str(where.line),
        "title": one_line(f"nnaudit {title(result)}"),
    }
    head = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{command} {head}::{_data(sentence(finding))}"


def _name(report: Report) -> str:
    return one_line(report.target.label)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(one_line(text)).replace(":", "%3A").replace(",", "%2C")


def _plain(line: str) -> str:
    """Return a line that no runner takes for a command: ``##[`` is one wherever it stands."""
    return line.replace("##[", "## [")
