"""Being started by a launcher of several processes, such as torchrun. Must not import torch."""

from __future__ import annotations

import os
import sys

from nnaudit import launchers
from nnaudit.errors import UsageError


def processes() -> int | None:
    """Return how many processes a launcher has started, in the first of them; the others end.

    The first starts as many of its own for what it watches, and forgets that it was launched. None
    where there was no launcher, or it started one.

    Raises:
        UsageError: the processes are on several machines.
    """
    launch = launchers.launched()
    if launch is None:
        return None
    if launch.rank:
        sys.exit(0)  # the first process audits and reports
    if launch.here != launch.world:
        raise UsageError(
            f"{launch.world} processes on several machines cannot be audited: "
            f"nnaudit --nproc-per-node {launch.here} audits {launch.here} of them on one"
        )
    for name in filter(launchers.is_set_by_torchrun, list(os.environ)):
        del os.environ[name]
    return launch.world
