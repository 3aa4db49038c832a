"""The patched functions that keep the user's files, for every process that runs a job's program."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from nnaudit.engine.job import Job
from nnaudit.state import files, landlock
from nnaudit.state.files import Protection


def overlay(job: Job) -> AbstractContextManager[Protection]:
    """Return the patched functions that keep the user's files from the program of ``job``."""
    from nnaudit.loop.script.overlay import Overlay

    places = files.places_of(Path(job.path))
    return Overlay(
        places,
        real=files.real(places, job.settings.allow_write),
        scratch=job.scratch,
        refusing=landlock.version() > 0,
    )
