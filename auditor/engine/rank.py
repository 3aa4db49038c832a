"""The process of one rank that is watched: started by torch's elastic launcher.

Started as ``python -m nnaudit.engine.rank TASK``, where the file TASK holds a :class:`Task`.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from pydantic import BaseModel

from nnaudit.engine.job import Job
from nnaudit.state import files

POLL = 0.05


class Task(BaseModel):
    """What a rank is to do: ``shortens`` says whether epochs are cut short.

    ``overlay`` says that patched functions have to keep the user's files; the kernel does not.
    """

    job: Job
    folder: str
    shortens: bool
    overlay: bool


def main() -> None:
    """Watch the script on this rank."""
    # The script's own children are not concerned.
    os.environ.pop("PYTHONSAFEPATH", None)
    task = Task.model_validate_json(Path(sys.argv[1]).read_bytes())
    with files.protected(lambda: _protection(task)):
        code = _watch(task, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _protection(task: Task) -> AbstractContextManager[files.Protection]:
    if not task.overlay:
        return nullcontext(files.Unprotected())
    from nnaudit.loop.script.overlay import Overlay
    from nnaudit.state import landlock

    job, places = task.job, files.places_of(Path(task.job.path))
    return Overlay(
        places,
        real=files.real(places, job.settings.allow_write),
        scratch=job.scratch,
        refusing=landlock.version() > 0,
    )


def _watch(task: Task, rank: int, world: int) -> int:
    """Run the script; return the process's exit code."""
    import torch

    from nnaudit.errors import describe, user_location, user_traceback
    from nnaudit.loop.base import seed_everything
    from nnaudit.loop.script.channel import Unwind
    from nnaudit.loop.script.launch import on_device
    from nnaudit.loop.script.main_module import as_main, main_module
    from nnaudit.loop.script.patches import Patches
    from nnaudit.ranks.collectives import Collectives, gloo_without_gpu
    from nnaudit.ranks.journal import Journal
    from nnaudit.ranks.record import Done, Failed
    from nnaudit.ranks.watch import Watch
    from nnaudit.ranks.writes import noted
    from nnaudit.targets import callstack
    from nnaudit.targets.set_order import compiled

    folder, job = Path(task.folder), task.job
    path = Path(job.path).absolute()
    journal = Journal(folder, rank)
    collectives = Collectives(journal)
    places = files.places_of(path)
    with ExitStack() as stack:
        stack.enter_context(on_device(job.settings.device))
        stack.enter_context(gloo_without_gpu())
        stack.enter_context(noted(journal, files.download_caches(places)))
        stack.enter_context(collectives.heard())
        taps = stack.enter_context(Patches())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        watch = Watch(journal, taps, shortens=task.shortens)
        stack.enter_context(watch.listening())
        main = main_module("__main__", path)
        stack.enter_context(as_main(main, path, list(job.arguments), Path.cwd()))
        stack.enter_context(taps.calls())
        # A script that does not seed has another state on every rank, as when it is launched.
        seed_everything(job.settings.seed + 1 + rank)
        taps.listener = watch
        error: BaseException | None = None
        try:
            callstack.run(exec, compiled(path, main.__dict__), main.__dict__)
        except Unwind:
            pass
        except SystemExit as exit_:
            error = exit_ if exit_.code else None
        except BaseException as raised:
            error = raised
        if error is not None:
            journal.add(
                Failed(
                    message=describe(error),
                    doing=journal.doing,
                    at=user_location(error),
                    traceback=user_traceback(error),
                )
            )
            return 1
        watch.finish(collectives.names)
        journal.add(Done())
        journal.over = True
        _wait_for_all(folder, rank, world)
        # What a process group does when it is taken down is not watched.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _wait_for_all(folder: Path, rank: int, world: int) -> None:
    """Wait until every rank has come to the end: one that is gone would fail those who wait."""
    Path(folder, f"done{rank}").touch()
    while not all(Path(folder, f"done{other}").exists() for other in range(world)):
        time.sleep(POLL)


if __name__ == "__main__":
    main()
