"""Noting which files a rank writes anew."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from nnaudit.errors import is_library, is_ours
from nnaudit.ranks.journal import Journal
from nnaudit.ranks.record import Wrote
from nnaudit.state.namespaces import is_under
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered

_ANEW = os.O_TRUNC
"""What a file is opened with to be written from its beginning; appending disturbs nobody."""


@contextmanager
def noted(journal: Journal, skipped: tuple[str, ...]) -> Iterator[None]:
    """Note which files are opened to be written anew; not under the folders ``skipped``.

    Python tells of every file that it opens; ``torch.save`` opens its own in C++.
    """
    quiet = (*skipped, "/dev", "/proc", "/sys", tempfile.gettempdir(), "/tmp", "/var/tmp")
    busy, real = threading.local(), torch.save

    def note(path: Any) -> None:
        if journal.over or getattr(busy, "noting", False):
            return
        busy.noting = True
        try:
            name = os.path.realpath(os.fsdecode(path))
            unasked = is_library(name) or is_ours(name) or name.endswith(".pyc")
            here = any(is_under(name, place) for place in (str(Path.cwd()),))
            if not unasked and (here or not any(is_under(name, place) for place in quiet)):
                journal.add(Wrote(path=name, step=journal.step, at=callstack.user_line()))
        finally:
            busy.noting = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        # The hook stays for as long as the process: this one ends with what is watched.
        if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & _ANEW:
            note(args[0])

    @wraps(real)
    @registered(Role.STANDS_IN)
    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(f, (str, os.PathLike)):
            note(os.fspath(f))
        real(obj, f, *args, **kwargs)

    sys.addaudithook(hook)
    torch.save = save
    try:
        yield
    finally:
        torch.save = real
