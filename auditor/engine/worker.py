"""The child process: owns torch, the device and the user's code, and streams what it finds.

Started as ``python -P -m nnaudit.engine.worker FD JOB PARENT``: events go to the file descriptor
FD, because stdout and stderr belong to the user's code. JOB is a :class:`nnaudit.engine.job.Job` as
JSON, PARENT the process without which there is nobody to report to.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnaudit.engine.job import Event, Job, Refused

if TYPE_CHECKING:
    from nnaudit.errors import NnauditError
    from nnaudit.loop.base import Loop


def main() -> None:
    """Do the job given on the command line."""
    pipe, job = int(sys.argv[1]), Job.model_validate_json(sys.argv[2])
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[3]),), daemon=True).start()
    emit = _writer(pipe)
    try:
        _work(job, emit)
    except BaseException as error:
        emit(_refusal(error))
    sys.stdout.flush()
    sys.stderr.flush()
    # A DataLoader worker or a thread of the user's must not keep a finished audit alive.
    os._exit(0)


def _end_with_parent(parent: int) -> None:
    """End this process when its parent is gone: nobody is left to end a program that hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _writer(pipe: int) -> Callable[[Event], None]:
    lock = threading.Lock()
    os.set_inheritable(pipe, False)

    def emit(event: Event) -> None:
        data = event.model_dump_json().encode() + b"\n"
        with lock:
            while data:
                data = data[os.write(pipe, data) :]

    return emit


def _work(job: Job, emit: Callable[[Event], None]) -> None:
    # Imported here, so that a torch that cannot be imported is reported like anything else.
    from nnaudit.engine import session as engine
    from nnaudit.loop.base import seed_everything
    from nnaudit.loop.direct import DirectLoop
    from nnaudit.loop.script import objects, run_script
    from nnaudit.targets import target as targets

    if job.battery:
        emit(engine.listed(job.settings))
        return
    engine.limit_threads(job.threads)
    path, settings = Path(job.path), job.settings
    device = engine.device_for(settings.device)

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
            elapsed=job.elapsed,
        )

    unused = ""
    if (job.form or targets.form_of(path)) == "script":
        failure = _as_script(job, audit)
        if failure is None:
            return
        unused = str(failure)
    seed_everything(settings.seed)
    itself = objects.trains_itself(path)
    if not itself:
        module = targets.imported(path)
        itself = objects.training_of(module, path, settings.device) is not None
        if not itself:
            target = replace(targets.found_in(module, path), unused=unused)
            audit(DirectLoop(target, device, settings.seed))
            return
        targets.forget(module)
    run_script(path, [], settings.device, settings.seed, audit, objects=True)


def _as_script(job: Job, audit: Callable[[Loop], None]) -> NnauditError | None:
    """Audit the file as a script; return why it cannot be, where its parts will do instead.

    Arguments that are required, say, keep a script from training, and not its parts from being
    audited.
    """
    from nnaudit.errors import TargetError, UserCodeError
    from nnaudit.loop.script import run_script
    from nnaudit.targets import target as targets

    begun: list[Loop] = []

    def body(loop: Loop) -> None:
        begun.append(loop)
        audit(loop)

    path = Path(job.path)
    try:
        settings = job.settings
        run_script(
            path, list(job.arguments), settings.device, settings.seed, body, loop=settings.loop
        )
    except (TargetError, UserCodeError) as error:
        if begun or job.form or job.arguments or not targets.has_all_parts(path):
            raise
        return error
    return None


def _refusal(error: BaseException) -> Refused:
    """Put whatever ended the audit into one sentence."""
    from nnaudit.errors import NnauditError, UserCodeError, describe

    if isinstance(error, UserCodeError):
        place = f"{error.location.file}:{error.location.line}: " if error.location else ""
        return Refused(
            message=f"{place}your code raised {error}",
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


if __name__ == "__main__":
    main()
