"""What frameworks need beyond the taps: loops of theirs that count, and would come to an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnaudit.loop.script.taps import Taps


def adapt(taps: Taps) -> None:
    """Put in what a framework needs as soon as the script has imported it."""


def make_endless() -> None:
    """Take the bounds off the framework's loop in which the calling thread's script is paused."""


@contextmanager
def as_left(loader: Any) -> Iterator[None]:
    """Iterating over ``loader`` beside the script must not tell the script that its epoch is over."""
    yield
