"""Standard input of a program under audit: what the shell gave it, and nobody at the keyboard."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Terminal(io.RawIOBase):
    """A terminal that can be asked for its size, and not for an answer.

    Raises:
        EOFError: it is read.
    """

    def fileno(self) -> int:
        return 0

    def isatty(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise EOFError("EOF when reading a line")


def leave_unanswered() -> None:
    """Have a program that reads from a terminal fail at once, where it would wait for ever."""
    if os.isatty(0):
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(_Terminal()))  # type: ignore[misc]
