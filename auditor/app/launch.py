"""Being started by a launcher of several processes, such as torchrun. Must not import torch."""

from __future__ import annotations

import os
import sys

from nnaudit.errors import UsageError

_LAUNCHERS = ("TORCHELASTIC_", "ACCELERATE_")
_PLACES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def processes() -> int | None:
    """Return how many processes a launcher has started, in the first of them; the others end.

    The first starts as many of its own for what it watches, and forgets that it was launched. None
    where there was no launcher, or it started one.

    Raises:
        UsageError: the processes are on several machines.
    """
    world, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK", "")
    if not (world.isdigit() and rank.isdigit()) or int(world) < 2:
        return None
    if int(rank):
        sys.exit(0)  # the first process audits and reports
    here = os.environ.get("LOCAL_WORLD_SIZE", world)
    if here != world:
        raise UsageError(
            f"{world} processes on several machines cannot be audited: "
            f"nnaudit --nproc-per-node {here} audits {here} of them on one"
        )
    for name in list(os.environ):
        if name in _PLACES or name.startswith(_LAUNCHERS):
            del os.environ[name]
    return int(world)
