"""GitLab's code quality report: findings shown in a merge request, at the line they are about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nnaudit.report import Report, Status
from nnaudit.reports import outline
from nnaudit.reports.base import Options
from nnaudit.reports.issues import Fingerprints, place, sentence, suppressed
from nnaudit.reports.outline import Finding, title
from nnaudit.reports.text import one_line

_SEVERITIES = {
    Status.FAIL: "critical",
    Status.ERROR: "major",
    Status.WARN: "minor",
    Status.NOTE: "info",
}


def render(reports: Sequence[Report], options: Options) -> str:
    """Return one list of the findings of all targets; suppressed ones are told as ``info``."""
    fingerprint = Fingerprints()
    issues = [
        {**_issue(finding, report, options), "fingerprint": fingerprint(finding.result, report)}
        for report in reports
        for finding in (*outline.ordered(report), *suppressed(report))
    ]
    return json.dumps(issues, indent=2) + "\n"


def _issue(finding: Finding, report: Report, options: Options) -> dict[str, Any]:
    result = finding.result
    where = place(result, report, options)
    severity = "info" if result.suppressed else _SEVERITIES.get(result.status, "info")
    return {
        "type": "issue",
        "check_name": one_line(result.code),
        "description": f"{one_line(title(result))}: {sentence(finding)}",
        "categories": ["Bug Risk"],
        "severity": severity,
        "location": {"path": where.file, "lines": {"begin": where.line}},
    }
