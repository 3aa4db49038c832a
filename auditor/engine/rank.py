"""The process of one rank that is watched: started by torch's elastic launcher.

Started as ``python -m nnaudit.engine.rank TASK``, where the file TASK holds a :class:`Task`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from nnaudit import launchers
from nnaudit.engine.job import Job
from nnaudit.engine.overlaid import overlay
from nnaudit.state import files

if TYPE_CHECKING:
    from nnaudit.loop.script.patches import Patches
    from nnaudit.ranks.collectives import Collectives
    from nnaudit.ranks.journal import Journal
    from nnaudit.ranks.watch import Watch

POLL = 0.05


class Task(BaseModel):
    """What a rank is to do: ``shortens`` says whether epochs are cut short; else ``steps`` end it.

    ``overlay`` says that patched functions have to keep the user's files; the kernel does not.
    """

    job: Job
    folder: str
    shortens: bool
    steps: int
    overlay: bool


def main() -> None:
    """Watch the script on this rank."""
    # The script's own children are not concerned.
    os.environ.pop("PYTHONSAFEPATH", None)
    task = Task.model_validate_json(Path(sys.argv[1]).read_bytes())
    with files.protected(lambda: _protection(task)):
        code = _watch(task, *_place())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _place() -> tuple[int, int]:
    """Return this process's rank, and how many there are."""
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _protection(task: Task) -> AbstractContextManager[files.Protection]:
    if not task.overlay:
        return nullcontext(files.Unprotected())
    return overlay(task.job)


def _watch(task: Task, rank: int, world: int) -> int:
    """Run the script and write its journal; return the process's exit code."""
    import torch

    from nnaudit.errors import TargetError, describe, user_location, user_traceback
    from nnaudit.loop.script.patches import Patches
    from nnaudit.ranks.collectives import Collectives
    from nnaudit.ranks.first_step import place
    from nnaudit.ranks.journal import Journal
    from nnaudit.ranks.record import Done, Failed
    from nnaudit.ranks.watch import Watch

    folder = Path(task.folder)
    journal = Journal(folder, rank)
    collectives = Collectives(journal)
    with ExitStack() as stack:
        watch = Watch(journal, shortens=task.shortens, steps=task.steps)
        for context in _contexts(task, journal, collectives, watch):
            stack.enter_context(context)
        taps = stack.enter_context(Patches())
        error = _run(task.job, taps, watch, rank)
        if error is not None:
            refused = isinstance(error, TargetError)
            failed = Failed(
                message=str(error) if refused else describe(error),
                refusal=refused,
                when=time.time(),
                doing=journal.doing,
                at=user_location(error),
                traceback=user_traceback(error),
            )
            watch.note_wrappers()
            journal.add(failed)
            return 1
        watch.finish()
        if watch.first_step is not None:
            # A batch may be of a class that cannot be pickled: one check less.
            with suppress(Exception):
                torch.save(watch.first_step, place(folder, rank))
        journal.add(Done())
        journal.over = True
        _wait_for_all(folder, rank, world)
        sys.stdout.flush()
        sys.stderr.flush()
        # What a process group does when it is taken down is not watched.
        os._exit(0)


def _contexts(
    task: Task, journal: Journal, collectives: Collectives, watch: Watch
) -> Iterator[AbstractContextManager[Any]]:
    """Yield what has to be in place before the script runs."""
    import torch

    from nnaudit.loop.script.launch import on_device
    from nnaudit.ranks import clipping
    from nnaudit.ranks.process_group import gloo_without_gpu
    from nnaudit.ranks.spawned import followed
    from nnaudit.ranks.sync_batch_norm import sync_batch_norm_without_gpu
    from nnaudit.ranks.writes import noted

    rank, world = _place()
    places = files.places_of(Path(task.job.path))
    yield on_device(task.job.settings.device)
    yield gloo_without_gpu()
    yield sync_batch_norm_without_gpu()
    yield followed(task.job.path, rank, world)
    yield files.variables(launchers.as_scheduled(os.environ))
    yield noted(journal, files.download_caches(places))
    yield clipping.noted(journal, watch.on_clip)
    yield collectives.heard()
    yield torch.compiler.set_stance("force_eager")


def _run(job: Job, taps: Patches, watch: Watch, rank: int) -> BaseException | None:
    """Run the script as its launcher would; return what it raised."""
    from nnaudit.loop.base import seed_everything
    from nnaudit.loop.script.channel import Unwind
    from nnaudit.loop.script.main_module import Invocation, as_main, main_module

    invoked = Invocation(Path(job.path).absolute(), job.path, job.arguments, job.module)
    main = main_module("__main__", invoked.path)
    with ExitStack() as stack:
        stack.enter_context(as_main(main, invoked))
        stack.enter_context(taps.calls())
        stack.enter_context(watch.listening())
        # A script that does not seed has another state on every rank, as when it is launched.
        seed_everything(job.settings.seed + 1 + rank)
        taps.listener = watch
        try:
            invoked.execute(main)
        except Unwind:
            return None
        except SystemExit as exit_:
            return exit_ if exit_.code else None
        except BaseException as raised:
            return raised
        finally:
            taps.listener = None
    return None


def _wait_for_all(folder: Path, rank: int, world: int) -> None:
    """Wait until every rank has come to the end: one that is gone would fail those who wait."""
    Path(folder, f"done{rank}").touch()
    while not all(Path(folder, f"done{other}").exists() for other in range(world)):
        time.sleep(POLL)


if __name__ == "__main__":
    main()
