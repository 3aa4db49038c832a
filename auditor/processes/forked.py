"""A child that is a fork of this process, for objects that cannot be handed to another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from typing import NoReturn

from nnaudit.engine.job import Job, Work
from nnaudit.processes.child import Start

_POLL_SECONDS = 0.02


class Fork:
    """A process forked from this one, with what :class:`subprocess.Popen` has of it."""

    def __init__(self, pid: int) -> None:
        """``pid`` is a child of this process."""
        self.pid = pid
        self._code: int | None = None

    def terminate(self) -> None:
        """Tell it to end, if it has not."""
        if self._poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, or minus the signal that killed it.

        Raises:
            TimeoutExpired: it has not ended within ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self._poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        return code

    def _poll(self) -> int | None:
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


def forked(work: Work) -> Start:
    """Return what starts children that do ``work`` with the objects of this process."""

    def start(job: Job, events: int, output: int) -> Fork:
        parent = os.getpid()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # what is buffered must not be written twice
        with warnings.catch_warnings():
            # The threads of a notebook's kernel: a fork has none of them, and needs none.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            return Fork(pid)
        _begin(job, events, output, parent, work)

    return start


def _begin(job: Job, events: int, output: int, parent: int, work: Work) -> NoReturn:
    """Be the child, in a session of its own."""
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        # A notebook's and pytest's write elsewhere.
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        # Imported in a child alone: that it is loaded tells user code that it is being audited.
        from nnaudit.processes import sandbox

        sandbox.run(job, events, parent, work)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
