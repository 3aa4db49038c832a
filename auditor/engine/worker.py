"""The child process: owns torch, the device and the user's code, and streams what it finds.

Forked by :mod:`nnaudit.processes.sandbox`. Events go to a pipe of their own, because stdout and
stderr belong to the user's code.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nnaudit.engine import stdin
from nnaudit.engine.job import RANKS, Emit, Event, Job, Measuring, Refused, Work
from nnaudit.engine.overlaid import overlay
from nnaudit.engine.unlaunched import unlaunched
from nnaudit.state import files, landlock
from nnaudit.state.files import Protection

if TYPE_CHECKING:
    import torch

    from nnaudit.errors import NnauditError
    from nnaudit.loop.base import Loop
    from nnaudit.ranks.record import Ranks


def run(job: Job, emit: Emit, protection: Protection | None, work: Work) -> NoReturn:
    """Do ``work`` for ``job`` and end the process.

    ``protection`` is what protects the user's files already, None where this process must.
    """
    from nnaudit.errors import EXPLAIN

    EXPLAIN.append(files.explained)
    stdin.leave_unanswered()
    try:
        with _protected(job, protection) as seen:
            work(seen, emit)
    except BaseException as error:
        emit(_refusal(unlaunched(error, job) or error))
    sys.stdout.flush()
    sys.stderr.flush()
    # A DataLoader worker or a thread of the user's must not keep a finished audit alive.
    os._exit(0)


@contextmanager
def _protected(job: Job, protection: Protection | None) -> Iterator[Job]:
    """Protect the user's files, and yield ``job`` with its file where the program finds it."""
    if protection is not None:
        with files.protected(lambda: nullcontext(protection)):
            yield job
        return
    places = files.places_of(Path(job.path))
    real = files.real(places, job.settings.allow_write)
    refusing = landlock.version() > 0
    if refusing:
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(dir=job.scratch)
        # Before there are threads, and torch starts some.
        landlock.write_only_under((job.scratch, "/dev/shm", *real), in_place=("/dev", "/proc"))
    made = overlay(job)
    with files.protected(lambda: made):
        yield job.model_copy(update={"path": made.inside(job.path)})


def writer(pipe: int, scratch: str) -> Emit:
    """Return what writes events to the file descriptor ``pipe``, a line each.

    What the program found in the tree below ``scratch`` is called by the user's own name.
    """
    lock = threading.Lock()
    os.set_inheritable(pipe, False)

    def emit(event: Event) -> None:
        text = files.outside(event.model_dump_json(), scratch)
        # A line may have been cut where its process was killed.
        data = b"\n" + text.encode() + b"\n"
        with lock:
            while data:
                data = data[os.write(pipe, data) :]

    return emit


def audit_file(job: Job, emit: Emit) -> None:
    """Audit the file that ``job`` names.

    Raises:
        NnauditError: it cannot be audited.
    """
    form, path = _form(job), list(sys.path)
    # Imported here, so that a torch that cannot be imported is reported like anything else.
    from nnaudit.engine import ranks
    from nnaudit.engine import session as engine
    from nnaudit.ranks.spawned import followed

    if job.battery:
        emit(engine.listed(job.settings))
        return
    engine.limit_threads(job.threads)
    settings = job.settings
    device = engine.device_for(settings.device)
    sys.path[:] = path  # torch 2.8 adds a folder, of which a script under python knows nothing

    # What it takes to start is of the budget, too.
    began = time.monotonic() if job.began is None else job.began
    seen: Ranks | None = None
    if settings.nproc_per_node is not None and not job.inspect:
        seen = _ranks(job, form, emit)

    def audit(loop: Loop) -> None:
        if job.inspect:
            emit(engine.started(loop, ()))
            return
        engine.run_audit(
            loop,
            settings,
            emit,
            remaining=job.remaining,
            known_fatal=job.known_fatal,
            elapsed=job.elapsed + spent(time.monotonic() - began, settings.budget),
            ranks=seen,
            parts=() if seen is None else (ranks.part(seen),),
        )

    failure = None
    if form == "script":
        with ExitStack() as stack:
            several = settings.nproc_per_node is not None
            stack.enter_context(
                ranks.alone(job.path, seen) if several else followed(job.path, 0, 1)
            )
            failure = _as_script(job, audit)
        if failure is None:
            return
    _as_module(job, device, audit, failure)


def _form(job: Job) -> str:
    """Return the form in which the target is audited; nothing where only the checks are listed.

    What is wrong with the call is said here, before torch is imported, which takes seconds.

    Raises:
        NnauditError: a check is unknown, or the file is neither a script nor a module.
    """
    from nnaudit.checks import catalog
    from nnaudit.targets.definitions import form_of

    settings = job.settings
    named = (*settings.select, *settings.ignore, *settings.extend_select)
    if named:
        catalog.require(named)
    if job.battery:
        return ""
    return "script" if job.module else job.form or form_of(Path(job.path))


def spent(seconds: float, budget: float | None) -> float:
    """Return how much of the budget the way to the training loop took: half of it at the most.

    A program that takes long to begin is asked what half of the budget has time for.
    """
    return seconds if budget is None else min(seconds, budget / 2)


def _as_module(
    job: Job, device: torch.device, audit: Callable[[Loop], None], failure: NnauditError | None
) -> None:
    """Audit the parts that the file defines.

    ``failure`` is why it was not audited as the script that it also is.

    Raises:
        NnauditError: ``failure``, where it cannot be audited by its parts either: it came first.
    """
    from nnaudit.errors import NeverStepsError, NnauditError
    from nnaudit.loop.base import seed_everything
    from nnaudit.loop.direct import DirectLoop
    from nnaudit.loop.script import objects, run_script
    from nnaudit.targets import target as targets

    path, settings = Path(job.path), job.settings
    seed_everything(settings.seed)
    if not objects.trains_itself(path):
        try:
            module = targets.imported(path)
            if objects.training_of(module, path, settings.device) is None:
                found = replace(
                    targets.found_in(module, path),
                    unused=str(failure or ""),
                    never_steps=isinstance(failure, NeverStepsError),
                )
                loop = DirectLoop(found, device, settings.seed)
            else:
                targets.forget(module)
                loop = None
        except NnauditError as error:
            raise failure or error from None
        if loop is not None:
            audit(loop)
            return
    run_script(path, [], settings.device, settings.seed, audit, objects=True)


def _ranks(job: Job, form: str, emit: Emit) -> Ranks:
    """Run the script on several ranks, on the user's files as they are, and say what they did.

    Raises:
        UsageError: it is no script.
        RanksError: it does not run so.
    """
    from nnaudit.engine import ranks
    from nnaudit.errors import UsageError

    if form != "script":
        raise UsageError(
            f"--nproc-per-node starts a script in several processes, and {job.path} is taken as a "
            "module: use --as script, or leave the option out"
        )
    protection = files.protection()
    assert protection is not None
    emit(Measuring(probe=RANKS, begins=True))
    with protection.fresh():
        found = ranks.observed(job, overlay=protection.label.startswith("python"))
    emit(Measuring(probe=RANKS, begins=False))
    return found


def _as_script(job: Job, audit: Callable[[Loop], None]) -> NnauditError | None:
    """Audit the file as a script; return why it cannot be, where its parts will do instead.

    Arguments that are required, say, keep a script from training, and not its parts from being
    audited.
    """
    from nnaudit.errors import TargetError, UserCodeError
    from nnaudit.loop.script import run_script
    from nnaudit.targets.definitions import has_all_parts

    begun: list[Loop] = []

    def body(loop: Loop) -> None:
        begun.append(loop)
        audit(loop)

    path = Path(job.path)
    try:
        settings = job.settings
        run_script(
            path,
            list(job.arguments),
            settings.device,
            settings.seed,
            body,
            loop=settings.loop,
            module=job.module,
        )
    except (TargetError, UserCodeError) as error:
        if begun or job.form or job.module or job.arguments or not has_all_parts(path):
            raise
        return error
    return None


def _refusal(error: BaseException) -> Refused:
    """Put whatever ended the audit into one sentence."""
    from nnaudit.errors import NnauditError, UserCodeError, describe, raised

    if isinstance(error, UserCodeError):
        return Refused(
            message=raised(error, error.location),
            detail=error.traceback,
            exit_code=error.exit_code,
        )
    if isinstance(error, NnauditError):
        notes = "".join(getattr(error, "__notes__", []))
        return Refused(message=str(error), detail=notes, exit_code=error.exit_code)
    return Refused(
        message=f"bug in nnaudit: {describe(error)}; run it with -v, and please report it",
        detail="".join(traceback.format_exception(error)),
        exit_code=3,
    )
