"""Stands in for the worker: executes the text in STAND_IN in its place, without torch."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import NoReturn

from nnaudit.engine import worker
from nnaudit.engine.job import Emit, Job, Work
from nnaudit.processes import sandbox
from nnaudit.state import files


def run(
    job: Job,
    emit: Emit,
    given: files.Protection | None,
    work: Work,
) -> NoReturn:
    protection: files.Protection = given or files.Unprotected()
    with files.protected(lambda: nullcontext(protection)):
        exec(os.environ["STAND_IN"], {"fresh": protection.fresh})
    sys.stdout.flush()
    os._exit(0)


worker.run = run
sandbox.SHARE = float(os.environ.get("STAND_IN_SHARE", sandbox.SHARE))
if os.environ.get("STAND_IN_UNPRIVILEGED"):
    sandbox._may_mount = lambda: False
sandbox.main()
