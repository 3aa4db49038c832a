"""The garbage collector of Python, and what it need not go through."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def older_objects_hidden() -> Iterator[bool]:
    """Hide the objects that there are from the garbage collector; yield whether that is done here.

    A process with torch in it holds a million objects, and to go through them takes up to a second.
    What is made from now on is few. Who has hidden objects already keeps them as they are.
    """
    here = not gc.get_freeze_count()
    if here:
        gc.freeze()
    try:
        yield here
    finally:
        if here:
            gc.unfreeze()
