"""Audits the running script in a child process before it trains, and stops it or warns.

Must not import torch: the frameworks have, but an audit of the script needs none here.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, Literal

from nnaudit import config, launchers
from nnaudit.app import runs
from nnaudit.app.pytest_warning import NnauditWarning
from nnaudit.callbacks import trackers
from nnaudit.display import AuditReport
from nnaudit.engine.job import Job
from nnaudit.engine.record import RefusedError
from nnaudit.errors import NnauditError
from nnaudit.processes import supervisor
from nnaudit.report import COUNTED

OnFindings = Literal["stop", "warn"]

_CHILD = "nnaudit.engine.worker"
"""A module that only the process has loaded in which a script is being audited."""


class FindingsError(NnauditError):
    """The audit before the training found what must be mended first; ``report`` says what."""

    exit_code = 1

    def __init__(self, report: AuditReport) -> None:
        """Take the ``report`` that holds the findings."""
        super().__init__(str(report))
        self.report = report


def audit_script(on_findings: OnFindings = "stop", **settings: Any) -> AuditReport | None:
    """Audit the script that is running, with its own arguments, in a child process.

    ``settings`` are the keys of ``[tool.nnaudit]``; ``fail_on`` decides what is a finding. The runs
    of W&B, MLflow and TensorBoard that are open get the report. Returns None where there is nothing
    to audit: within an audit, or without a script, as in a notebook. A script that cannot be
    audited is no finding: a warning says so.

    Raises:
        FindingsError: there are findings, and ``on_findings`` is ``stop``.
        UsageError: a setting is unknown or wrong.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if _CHILD in sys.modules or script is None:
        return None
    chosen = config.load(settings, given_by="the callback")
    job = Job(path=script, arguments=tuple(sys.argv[1:]), form="script", settings=chosen)
    try:
        with launchers.forgotten():
            data, _ = supervisor.audit(job)
    except RefusedError as error:
        _warn(f"the script was not audited: {error}")
        return None
    runs.keep(data)
    report = AuditReport.of(data)
    trackers.publish(report)
    if report.with_status(*COUNTED[chosen.fail_on]):
        if on_findings == "stop":
            raise FindingsError(report)
        _warn(str(report))
    return report


def _warn(message: str) -> None:
    warnings.warn(f"nnaudit: {message}", NnauditWarning, stacklevel=3)
