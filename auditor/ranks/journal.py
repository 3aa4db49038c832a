"""The journal of one rank: what it does, written down as it happens."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from nnaudit.ranks.record import Entry, journal


class Journal:
    """Appends entries to the rank's file, each whole, so that nothing is lost if the rank dies.

    Attributes:
        step: optimizer steps taken.
        doing: what the script is doing, for a sentence.
        collectives: how many were entered.
        meetings: as of :class:`nnaudit.ranks.record.Wrote`.
        over: nothing is written any more.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.step = 0
        self.doing = "the preparation"
        self.collectives = 0
        self.meetings = 0
        self.over = False
        self._lock = threading.Lock()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(journal(folder, rank), flags, 0o600)

    def add(self, entry: Entry) -> None:
        """Write ``entry`` down."""
        if self.over:
            return
        data = entry.model_dump_json().encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._file, data) :]
