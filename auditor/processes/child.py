"""One child of the parent: starts it, hears its events and its output, and ends it. No torch."""

from __future__ import annotations

import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from pydantic import ValidationError

from nnaudit.engine.job import EVENT, Ended, Event, Job
from nnaudit.state import files

COMMAND = (sys.executable, "-P", "-m", "nnaudit.processes.sandbox")
"""What is started for a file; its words are the pipe for events, the job, and this process."""

KEPT = 1 << 20
"""Bytes of a program's output that are kept: its last."""

_GRACE = 1.5
"""Seconds in which a child may say what its program wrote, once it is told to end."""


class Process(Protocol):
    """A process that was started; as :class:`subprocess.Popen` has it."""

    pid: int

    def terminate(self) -> None:
        """Tell it to end."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, or minus the signal that killed it.

        Raises:
            TimeoutExpired: it has not ended within ``timeout`` seconds.
        """
        ...


Start = Callable[[Job, int, int], Process]
"""Starts a process, first of a session of its own, which does a job, writes events to the first
file descriptor and all that it prints to the second."""


def by_command(job: Job, events: int, output: int) -> Process:
    """Start :data:`COMMAND`, which does a job on a file."""
    # A command line has room for little; a job may hold the words of a long one.
    task = Path(job.scratch, "job.json")
    task.write_text(job.model_dump_json(), encoding="utf-8")
    words = (str(events), str(task), str(os.getpid()))
    return subprocess.Popen(
        [*COMMAND, *words],
        stdout=output,
        stderr=output,
        pass_fds=(events,),
        start_new_session=True,
    )


class InterruptedAuditError(Exception):
    """Somebody wants the audit to end."""


class Interruption:
    """What Ctrl-C and SIGTERM mean, for the time of a ``with``.

    The first ends the audits that are under way, which then report what was answered; the second
    ends everything at once.

    Attributes:
        signal: the first that came; 0 as long as none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.children: set[Child] = set()
        self._before: dict[int, Any] = {}
        # Never read: once there is something in it, all who wait for it are woken.
        self.woken, self._wake = os.pipe()

    @property
    def exit_code(self) -> int:
        """What a shell makes of a program that the signal ended."""
        return 128 + self.signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others hear no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.woken)
        os.close(self._wake)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            for child in list(self.children):
                child.kill()
            os._exit(self.exit_code)
        self.signal = number
        os.write(self._wake, b"!")


class Child:
    """A process that does one job, for the time of a ``with``.

    Attributes:
        ended: what it said last.
    """

    def __init__(
        self, job: Job, interruption: Interruption | None = None, start: Start = by_command
    ) -> None:
        """``interruption`` says when to stop before the job is done."""
        self.ended: Ended | None = None
        self._job = job
        self._start = start
        self._interruption = interruption
        self._over = False

    def __enter__(self) -> Self:
        self._scratch = os.path.realpath(tempfile.mkdtemp(prefix="nnaudit-"))
        job = self._job.model_copy(update={"scratch": self._scratch})
        self._events, events = os.pipe()
        self._output, output = os.pipe()
        self._kept = tempfile.TemporaryFile()
        os.set_blocking(self._output, False)
        self._process = self._start(job, events, output)
        os.close(events)
        os.close(output)
        if self._interruption:
            self._interruption.children.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        if self._interruption:
            self._interruption.children.discard(self)
        for number in (self._events, self._output):
            os.close(number)
        self._kept.close()

    def events(self, patience: Callable[[], float]) -> Iterator[Event]:
        """Yield what the child says, until it has ended.

        Raises:
            TimeoutError: it said nothing for as long as ``patience()`` allowed.
            InterruptedAuditError: a signal says so.
            ValidationError: something else than nnaudit wrote to the pipe.
        """
        yield from self._events_until(patience, self._interruption)

    def _events_until(
        self, patience: Callable[[], float], interruption: Interruption | None
    ) -> Iterator[Event]:
        for line in self._lines(patience, interruption):
            try:
                event = EVENT.validate_json(line)
            except ValidationError:
                if not line.startswith(b'{"event":'):
                    raise
                continue  # cut when the process was killed
            if isinstance(event, Ended):
                self.ended = event
                return
            yield event

    def _lines(
        self, patience: Callable[[], float], interruption: Interruption | None
    ) -> Iterator[bytes]:
        pending, since = b"", time.monotonic()
        sources = [self._events, self._output]
        sources += [interruption.woken] if interruption else []
        while True:
            left = patience() - (time.monotonic() - since)
            ready = select.select(sources, [], [], max(left, 0.0))[0]
            if not ready:
                raise TimeoutError
            if self._output in ready and not self._keep_output():
                sources.remove(self._output)
            if interruption and interruption.signal:
                raise InterruptedAuditError
            if self._events in ready:
                data = os.read(self._events, 1 << 16)
                if not data:
                    return
                since = time.monotonic()
                *complete, pending = (pending + data).split(b"\n")
                yield from filter(None, complete)

    def _keep_output(self) -> bool:
        """Keep what there is of the program's output; return whether more may come."""
        with suppress(BlockingIOError):
            while data := os.read(self._output, 1 << 16):
                self._kept.write(data)
                if self._kept.tell() > 2 * KEPT:
                    self._kept.seek(-KEPT, os.SEEK_END)
                    last = self._kept.read()
                    self._kept.seek(0)
                    self._kept.truncate()
                    self._kept.write(last)
            return False
        return True

    def output(self) -> str:
        """Return the last of what the program printed."""
        self._keep_output()
        size = self._kept.tell()
        self._kept.seek(max(size - KEPT, 0))
        return files.outside(self._kept.read().decode(errors="replace"), self._scratch)

    @property
    def code(self) -> int:
        """The exit code of the program, or minus the number of the signal that killed it."""
        return self.ended.code if self.ended else self._process.wait()

    def end(self) -> None:
        """End the program and all that it started, and hear what it wrote."""
        if self._over:
            return
        if self.ended is None:
            self._process.terminate()
            deadline = time.monotonic() + _GRACE
            with suppress(TimeoutError, ValidationError):
                for _ in self._events_until(lambda: deadline - time.monotonic(), None):
                    pass
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        self.kill()

    def kill(self) -> None:
        """End everything at once."""
        self._over = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        remove(self._scratch)


def remove(folder: str) -> None:
    """Remove a scratch folder, whatever modes the program and the kernel gave what is in it."""
    for above, folders, _ in os.walk(folder):
        for inner in (Path(above, name) for name in folders):
            if not inner.is_symlink():
                inner.chmod(stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)
