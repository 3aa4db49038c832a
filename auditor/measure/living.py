"""The objects of a kind that are alive in the process."""

from __future__ import annotations

import gc
from typing import TypeVar

T = TypeVar("T")


def living(kind: type[T]) -> list[T]:
    """Return the objects of ``kind`` that the collector knows of.

    By type, not by ``isinstance``: that would ask every lazy proxy in the process for its class,
    and some answer with a warning.
    """
    return [each for each in gc.get_objects() if issubclass(type(each), kind)]
