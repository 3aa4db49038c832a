"""A badge for a README: the JSON from which shields.io's endpoint draws one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from nnaudit.report import Report, Status
from nnaudit.reports import outline
from nnaudit.reports.base import Options

_COLORS = {
    Status.FAIL: "red",
    Status.ERROR: "red",
    Status.WARN: "yellow",
    Status.INCONCLUSIVE: "lightgrey",
}


def render(reports: Sequence[Report], options: Options) -> str:
    """Return one badge for all targets: how many checks have the status of the verdict."""
    status = outline.verdict_of_all(reports).status
    counts: Counter[Status] = Counter()
    for report in reports:
        counts.update(outline.counts(report))
    number = counts[status]
    message = f"{number} {outline.tallied(status, number)}"
    if status is Status.INCONCLUSIVE:
        message = "no verdict"
    badge = {
        "schemaVersion": 1,
        "label": "nnaudit",
        "message": message,
        "color": _COLORS.get(status, "brightgreen"),
    }
    return json.dumps(badge) + "\n"
