"""The process between the parent and the program under audit: it keeps the user's files.

Started as ``python -P -m nnaudit.processes.sandbox FD FILE PARENT``: events go to the file
descriptor FD, FILE holds a :class:`nnaudit.engine.job.Job` as JSON, with the process PARENT this
one ends. It enters namespaces where the kernel allows that, forks the worker, and stays: when the
worker has ended, by whatever means, it ends everything that the program started and says what the
program wrote; only then is the audit over. Instead of being started, it is forked from a process
whose objects are to be audited (:mod:`nnaudit.processes.forked`).

Must not import torch: it comes before the worker, which does.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nnaudit.engine import worker
from nnaudit.engine.job import Emit, Ended, Job, Protected, Refused, Work
from nnaudit.errors import is_library, is_ours
from nnaudit.processes.child import remove
from nnaudit.state import files, landlock, mirror, namespaces
from nnaudit.state.files import Protection
from nnaudit.state.namespaces import Layers, is_under

SHARE = 0.5
"""Of what is free where the scratch folder lies, the part that the program may fill."""

NAMES = 5
"""Written files that a report names."""

_WATCH_SECONDS = 0.5
"""Between two looks at how full the scratch folder is."""

_PARENT_DEATH_SIGNAL, _ADOPT_ORPHANS = 1, 36  # <sys/prctl.h>
_MAY_MOUNT = 1 << 21  # CAP_SYS_ADMIN

_UNASKED = ("__pycache__", ".pytest_cache", ".mypy_cache", ".triton", ".nv")
"""Folders that libraries fill by themselves: the report does not count their files."""


@dataclass(frozen=True)
class Program:
    """What is to be run, and on which terms.

    Attributes:
        places: the folders that the audit is about.
        limit: the bytes that the program may write.
        work: what the worker does.
    """

    job: Job
    emit: Emit
    places: tuple[str, ...]
    limit: int
    work: Work


def main() -> None:
    """Do the job given on the command line."""
    job, parent = Job.model_validate_json(Path(sys.argv[2]).read_bytes()), int(sys.argv[3])
    run(job, int(sys.argv[1]), parent)


def run(job: Job, events: int, parent: int, work: Work = worker.audit_file) -> None:
    """Have a worker do ``work``; say what happens to the file descriptor ``events``.

    With the process ``parent`` this one ends.
    """
    _run(job, worker.writer(events, job.scratch), parent, work)
    if os.getppid() != parent:
        remove(job.scratch)  # as the parent would have done


def _run(job: Job, emit: Emit, parent: int, work: Work) -> None:
    # Held back until there is something to end; the worker lets it through again.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _end_with_parent(parent)
    missing = [path for path in job.settings.allow_write if not Path(path).exists()]
    if missing:
        emit(Refused(message=f"--allow-write {missing[0]}: no such file or folder", exit_code=2))
        return
    limit = int(shutil.disk_usage(job.scratch).free * SHARE)
    program = Program(job, emit, files.places_of(Path(job.path)), limit, work)
    why = ""
    if job.settings.sandbox in ("auto", "kernel"):
        why = _in_namespaces(program, own_processes=True)
        # A container that hides parts of /proc has no second one.
        why = why and _in_namespaces(program, own_processes=False)
        if not why:
            return
        if job.settings.sandbox == "kernel":
            emit(Refused(message=f"--sandbox kernel: {why}", exit_code=2))
            return
    _without_namespaces(program, why)


# --- levels ---------------------------------------------------------------------------------------


def _in_namespaces(program: Program, *, own_processes: bool) -> str:
    """Run the program in namespaces to its end; return why it cannot be, else nothing."""
    reading, writing = os.pipe()
    own_users = not _may_mount()

    def enter() -> None:
        with _telling(writing):
            flags = namespaces.NEW_MOUNTS
            flags |= namespaces.NEW_USERS if own_users else 0
            flags |= namespaces.NEW_PROCESSES if own_processes else 0
            namespaces.enter_namespaces(flags)
        first = _fork(first_process)
        os.close(writing)
        _wait_for(first, signal.SIGTERM)

    def first_process() -> None:
        _control(_ADOPT_ORPHANS, 1)
        with _telling(writing):
            layers = Layers(
                program.job.scratch,
                through=files.real(program.places, program.job.settings.allow_write),
                essential=program.places,
                own_processes=own_processes,
                own_users=own_users,
            )
            root = layers.new_root()
        os.write(writing, b"!")
        os.close(writing)
        program.emit(Protected(level=layers.label))

        def work() -> None:
            layers.enter(root, str(Path.cwd()))
            _work(program, layers)

        found = partial(_files, layers.written)
        _supervise(program, _fork(work), found, everything=own_processes)

    child = _fork(enter)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    if said == "!":
        _wait_for(child, signal.SIGTERM)
        return ""
    os.waitpid(child, 0)
    return said or "its first process was killed"


@contextmanager
def _telling(pipe: int) -> Iterator[None]:
    """Write into ``pipe`` what the kernel does not allow in the block, and end the process then."""
    try:
        yield
    except OSError as error:
        os.write(pipe, f"{error.filename}: {error.strerror}".encode())
        os._exit(1)


def _may_mount() -> bool:
    """Whether this process may mount without a user namespace of its own."""
    status = Path("/proc/self/status").read_text()
    capabilities = next(line for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(capabilities.split()[1], 16) & _MAY_MOUNT)


def _without_namespaces(program: Program, why: str) -> None:
    """Run the program beside everything else to its end."""
    _control(_ADOPT_ORPHANS, 1)
    off = program.job.settings.sandbox == "off"
    by_kernel = not off and landlock.version() > 0
    level = "off" if off else "python with Landlock" if by_kernel else "python"
    program.emit(Protected(level=level, why=why))

    protection = files.Unprotected() if off else None
    child = _fork(lambda: _work(program, protection))
    _supervise(program, child, lambda: _changed(program.job.scratch), everything=False)


# --- processes ------------------------------------------------------------------------------------


def _fork(act: Callable[[], None]) -> int:
    """Do ``act`` in a process that ends with this one; return its number."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _end_with_parent(parent)
        act()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    """Have this process told to end when its parent is gone: nobody is left to report to."""
    _control(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() not in (parent, 0):  # 0: a parent outside of this process namespace
        os._exit(1)


def _control(what: int, value: int) -> None:
    with suppress(AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(what, value, 0, 0, 0)


def _wait_for(child: int, end_with: signal.Signals) -> int:
    """Return how ``child`` ended; being told to end, end it. What was orphaned is reaped."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, end_with))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:
        ended, status = os.wait()
        if ended == child:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            return os.waitstatus_to_exitcode(status)


def _work(program: Program, protection: Protection | None) -> None:
    """Be the worker."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY or soft > program.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (program.limit, hard))
    worker.run(program.job, program.emit, protection, program.work)


def _supervise(
    program: Program, child: int, written: Callable[[], Iterator[Written]], *, everything: bool
) -> None:
    """Wait for the worker to end, end what it started, and say what it wrote.

    Args:
        program: what the worker runs.
        child: the worker's process.
        written: finds the files that were written.
        everything: whether this is the first process of a namespace that holds all the others.
    """
    scratch, why = program.job.scratch, ""
    free = shutil.disk_usage(scratch).free

    def look(*_: object) -> None:
        nonlocal why
        if free - shutil.disk_usage(scratch).free > program.limit:
            largest = max(written(), key=lambda file: file.size, default=None)
            name = f", most of it into {largest.path}" if largest else ""
            why = (
                f"wrote more than {program.limit / 1e9:.0f} GB to the scratch folder{name}: "
                f"--allow-write {largest.path if largest else 'PATH'} has it written for real"
            )
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _WATCH_SECONDS, _WATCH_SECONDS)
    code = _wait_for(child, signal.SIGKILL)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _end_all(everything=everything)
    found = sorted(written(), key=lambda file: file.time)
    _keep_bytecode(found)
    told = [file for file in found if not _is_unasked(file.path, program.places)]
    if program.job.keep:
        _copy(told, Path(program.job.keep))
    names = tuple(file.path for file in told[:NAMES])
    kept = program.job.keep
    program.emit(Ended(code=code, why=why, files=len(told), names=names, kept=kept))


def _end_all(*, everything: bool) -> None:
    """End every process below this one, and those that they left behind."""
    with suppress(ChildProcessError):
        while True:
            for process in (-1,) if everything else _children():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            os.wait()


def _children() -> Iterator[int]:
    """Yield the processes that this one has to wait for."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, in brackets, may hold blanks and brackets.
            parent = status.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                yield int(status.parent.name)


# --- what was written -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A file that the program wrote: its path as the program knows it, and where it is."""

    path: str
    place: str
    size: int
    time: float


def _files(written: dict[str, str]) -> Iterator[Written]:
    for point, folder in written.items():
        for above, _, names in os.walk(folder):
            for name in names:
                place = f"{above}/{name}"
                path = f"{point.rstrip('/')}/{os.path.relpath(place, folder)}"
                with suppress(OSError):
                    found = os.lstat(place)
                    if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
                        yield Written(path, place, found.st_size, found.st_mtime)


def _changed(scratch: str) -> Iterator[Written]:
    """Yield the files of the first tree in ``scratch`` that are not as they were."""
    tree = f"{scratch}/{files.FIRST_LAYER}"
    first = f"{tree}.0"  # where another execution has not come to its end
    for file in _files({"/": first if Path(first).exists() else tree}):
        if not mirror.is_as_it_was(file.place, file.path):
            # An original under another name is there by a link.
            yield replace(file, place=mirror.original(file.place) or file.place)


def _is_unasked(path: str, places: tuple[str, ...]) -> bool:
    """Whether a library left ``path`` behind, or it is a temporary file."""
    if any(folder in _UNASKED for folder in path.split("/")):
        return True
    temporary = (tempfile.gettempdir(), "/tmp", "/var/tmp")
    return any(is_under(path, folder) for folder in temporary) and not any(
        is_under(path, place) for place in places
    )


def _keep_bytecode(found: list[Written]) -> None:
    """Leave installed modules as Python leaves them: else they are compiled in each audit anew."""
    for file in found:
        if file.path.endswith(".pyc") and (is_library(file.path) or is_ours(file.path)):
            with suppress(OSError):
                new = Path(f"{file.path}.{os.getpid()}")
                shutil.copyfile(file.place, new)
                new.replace(file.path)


def _copy(found: list[Written], folder: Path) -> None:
    """Copy files to ``folder``: by their path in the working folder, or outside of it in full."""
    here = str(Path.cwd())
    for file in found:
        inside = is_under(file.path, here)
        target = folder / (os.path.relpath(file.path, here) if inside else file.path.lstrip("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file.place, target, follow_symlinks=False)


if __name__ == "__main__":
    main()
