"""Numbers in sentences: messages and reports say ``1 tensor is``, ``2 tensors are``.

Must not import torch: reports are rendered without it.
"""

from __future__ import annotations

import re


def count(number: int, noun: str) -> str:
    """Write ``number`` with ``noun`` in the right number: ``1 step``, ``1,200 steps``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def verb(number: int, plural: str, singular: str = "") -> str:
    """Return the form that follows ``number`` things: ``are`` or ``is``; ``fail`` or ``fails``."""
    return (singular or f"{plural}s") if number == 1 else plural


def attribute(path: str) -> str:
    """Write a module's dotted path as Python reads it: ``model.0.bias`` as ``model[0].bias``."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path)
