"""Scripts that fail for want of a launcher of several processes."""

from __future__ import annotations

import ast
import re

from nnaudit import launchers
from nnaudit.engine.job import Job
from nnaudit.errors import TargetError, UserCodeError
from nnaudit.report import Location
from nnaudit.targets.source import source_of

_RENDEZVOUS = re.compile(r"environment variable (\w+) expected, but not set")


def unlaunched(error: BaseException, job: Job) -> TargetError | None:
    """Return what to say of a script that raised ``error`` because no launcher had started it.

    None where it is another error, or there was a launcher.
    """
    if job.settings.nproc_per_node is not None or not isinstance(error, UserCodeError):
        return None
    name = _missing(error.original, error.location)
    if not name:
        return None
    place = f"{error.location.file}:{error.location.line}: " if error.location else ""
    return TargetError(
        f"{place}this script expects several processes (it reads {name}): run `nnaudit "
        f"--nproc-per-node 2 {job.path}`"
    )


def _missing(error: BaseException, at: Location | None) -> str:
    """Name the variable of a launcher's for want of which a script raised; empty for none."""
    if isinstance(error, KeyError):
        name = str(error).strip("'")
        return name if name in launchers.names() else ""
    if isinstance(error, ValueError) and (found := _RENDEZVOUS.search(str(error))):
        return found[1]
    if isinstance(error, TypeError) and "NoneType" in str(error) and at is not None:
        read = source_of(at.file).at(at.line, ast.Constant)  # int(os.environ.get("RANK"))
        return next((str(each.value) for each in read if each.value in launchers.names()), "")
    return ""
