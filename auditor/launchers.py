"""What a launcher of several processes tells each of them, by environment variables.

Torchrun's names are the common ones; a cluster's scheduler (Slurm) and MPI have their own. Must not
import torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from nnaudit.state import files

TORCHRUN = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "NODE_RANK", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""A process's place among the others, and where they meet."""

_ELASTIC = "TORCHELASTIC_"

_SCHEDULERS = {
    "RANK": ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "LOCAL_RANK": ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    "GROUP_RANK": ("SLURM_NODEID", "OMPI_COMM_WORLD_NODE_RANK"),
    "WORLD_SIZE": (
        "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
    ),
    "LOCAL_WORLD_SIZE": (
        "SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE",
        "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
    ),
    "GROUP_WORLD_SIZE": ("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES"),
}  # fmt: skip
"""The names that schedulers have for torchrun's."""

_STARTED = (
    ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    # Not SLURM_NTASKS: a batch script has it too, and is one process.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
)
"""By launcher: the variables of a process's rank, of how many there are, and on its machine."""


@dataclass(frozen=True)
class Launch:
    """This process is ``rank`` of ``world``, of which ``here`` are on this machine."""

    rank: int
    world: int
    here: int


def launched() -> Launch | None:
    """Return what started this process as one of several; None where nothing did."""
    for names in _STARTED:
        rank, world, here = (os.environ.get(name, "") for name in names)
        if rank.isdigit() and world.isdigit() and int(world) > 1:
            # Slurm counts machines with as many processes: "2(x4)", or "2(x3),1".
            alike = here.partition("(")[0].partition(",")[0]
            return Launch(int(rank), int(world), int(alike) if alike.isdigit() else int(world))
    return None


ONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
}
"""What the only process of a launch is told."""


def is_set_by_torchrun(name: str) -> bool:
    """Whether torchrun sets the environment variable ``name``, or a launcher on top of it."""
    return name in TORCHRUN or name.startswith(_ELASTIC)


def names() -> tuple[str, ...]:
    """Return the names of all variables that tell a process its place."""
    return (*TORCHRUN, *(name for names in _SCHEDULERS.values() for name in names))


def as_scheduled(values: Mapping[str, str]) -> dict[str, str]:
    """Return what schedulers would tell the process that torchrun tells ``values``.

    Only what is set has another value: where there is no scheduler, nothing.
    """
    return {
        name: values[ours]
        for ours, names in _SCHEDULERS.items()
        for name in names
        if ours in values and name in os.environ
    }


@contextmanager
def forgotten() -> Iterator[None]:
    """Hide that this process belongs to a run of several, for the time of a ``with``."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if is_set_by_torchrun(name)}
    with files.variables(as_scheduled(ONE)):
        try:
            yield
        finally:
            os.environ.update(hidden)
