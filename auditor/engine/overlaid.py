"""The patched functions that keep the user's files, for every process that runs a job's program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nnaudit.engine.job import Job
from nnaudit.state import files, landlock

if TYPE_CHECKING:
    from nnaudit.loop.script.overlay import Overlay


def overlay(job: Job) -> Overlay:
    """Return the patched functions that keep the user's files from the program of ``job``."""
    from nnaudit.loop.script.overlay import Overlay

    # A rank begins where the program works already.
    found = files.places_of(Path(job.path))
    places = tuple(os.path.normpath(files.outside(f"{place}/", job.scratch)) for place in found)
    return Overlay(
        places,
        real=files.real(places, job.settings.allow_write),
        scratch=job.scratch,
        refusing=landlock.version() > 0,
        moves_in=True,
    )
