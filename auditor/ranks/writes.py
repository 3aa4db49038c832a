"""Noting which files a rank writes anew, and which it reads."""

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
from nnaudit.ranks.record import Read, Wrote
from nnaudit.state.namespaces import is_under
from nnaudit.targets import callstack
from nnaudit.targets.callstack import Role, registered

MOST = 1_000
"""Files up to which reading is noted."""

_SOURCE = (".py", ".pyc")

_ANEW = os.O_TRUNC
"""What a file is opened with to be written from its beginning; appending disturbs nobody."""


@contextmanager
def noted(journal: Journal, skipped: tuple[str, ...]) -> Iterator[None]:
    """Note which files are opened to be written anew, or read; not under the folders ``skipped``.

    Python tells of every file that it opens; ``torch.save`` opens its own in C++.
    """
    quiet = (*skipped, "/dev", "/proc", "/sys", tempfile.gettempdir(), "/tmp", "/var/tmp")
    busy, real = threading.local(), torch.save

    here, process, read = str(Path.cwd()), os.getpid(), set[str]()

    def note(path: Any, *, writes: bool) -> None:
        if journal.over or getattr(busy, "noting", False):
            return
        busy.noting = True
        try:
            name = os.path.realpath(os.fsdecode(path))
            if is_library(name) or is_ours(name) or name.endswith(_SOURCE):
                return
            if not is_under(name, here) and any(is_under(name, place) for place in quiet):
                return
            meetings = journal.meetings
            if writes:
                at = callstack.user_line()
                journal.add(Wrote(path=name, step=journal.step, meetings=meetings, at=at))
            # A loader's worker does not know what its rank has come to since it was forked.
            elif name not in read and len(read) < MOST and os.getpid() == process:
                read.add(name)
                journal.add(Read(path=name, meetings=meetings, at=callstack.user_line()))
        finally:
            busy.noting = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        # The hook stays for as long as the process: this one ends with what is watched.
        if event != "open" or not isinstance(args[0], (str, bytes)):
            return
        writes = bool(args[2] & _ANEW)
        if writes or args[2] & os.O_ACCMODE == os.O_RDONLY:
            note(args[0], writes=writes)

    @wraps(real)
    @registered(Role.STANDS_IN)
    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(f, (str, os.PathLike)):
            note(os.fspath(f), writes=True)
        real(obj, f, *args, **kwargs)

    sys.addaudithook(hook)
    torch.save = save
    try:
        yield
    finally:
        torch.save = real
