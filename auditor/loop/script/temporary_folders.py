"""Temporary folders of a script's, which its data set may lie in.

A script that is executed again goes on with the data set of its first execution, and that looks
its files up in the folder that ``tempfile`` had named then. So a line of the user's gets the same
names in every execution, and a folder that it removes in the end stays until the audit is over.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any

from nnaudit.loop.trace import patched
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered

_LENGTH = 8
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789_"
"""Those of tempfile's own names."""


class TemporaryFolders:
    """What names the script's temporary files and folders, and keeps the folders."""

    def __init__(self, others: Iterator[str]) -> None:
        """``others`` are the names that are given where no line of the user's asks."""
        self._others = others
        self._asked: Counter[tuple[str, int]] = Counter()
        self._names: set[str] = set()
        self._removed: list[Path] = []
        self._remove: Callable[..., Any] = shutil.rmtree

    def begin(self) -> None:
        """Begin another execution: every line gets its names from the first on."""
        self._asked.clear()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        calls = callstack.own_call()
        if not calls:  # nnaudit's own
            return next(self._others)
        place = callstack.location(calls[-1])
        key = (place.file, place.line)
        self._asked[key] += 1
        drawn = Random(f"{key} {self._asked[key]}")
        name = "".join(drawn.choices(_CHARACTERS, k=_LENGTH))
        self._names.add(name)
        return name

    def keeping(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``shutil.rmtree`` such that the script's temporary folders stay."""

        @wraps(real)
        @registered(Role.STANDS_IN)
        def remove(path: Any, *args: Any, **kwargs: Any) -> Any:
            folder = Path(os.fsdecode(path))
            if not any(each in folder.name for each in self._names):
                return real(path, *args, **kwargs)
            self._removed.append(folder.absolute())
            return None

        return remove

    def remove(self) -> None:
        """Remove what the script has removed."""
        while self._removed:
            self._remove(self._removed.pop(), ignore_errors=True)


@contextmanager
def temporary_folders() -> Iterator[TemporaryFolders]:
    """Name and keep the temporary folders of a script for the time of a ``with``."""
    module: Any = tempfile  # of which the names are no public part
    before = module._get_candidate_names()
    folders = TemporaryFolders(before)
    module._name_sequence = folders
    try:
        with patched(shutil, "rmtree", folders.keeping):
            yield folders
    finally:
        module._name_sequence = before
        folders.remove()
