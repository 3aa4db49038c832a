"""How long something took, on a machine that may be busy with something else.

A limit in seconds of the clock on the wall makes an answer depend on the machine's other work:
with eight programs on two processors every training looks four times as slow. What the process
itself computed does not depend on them.
"""

from __future__ import annotations

import time

_PATIENCE = 3.0
"""A process that waits (for a disk, for workers) computes nothing: it may take this much longer."""


class Stopwatch:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._processor = time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds as on a quiet machine: of processor time, where that is less than went by.

        At least a third of what went by, so that no wait is endless. With several threads the
        processor time is more than went by, and does not count.
        """
        wall = time.perf_counter() - self._wall
        return max(min(wall, time.process_time() - self._processor), wall / _PATIENCE)
