"""Running a script, and an audit of it beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from nnaudit.errors import TargetError
from nnaudit.loop.script.channel import Close, CommandChannel
from nnaudit.loop.script.execution import Execution
from nnaudit.loop.script.loop import ScriptLoop
from nnaudit.loop.script.main_module import Invocation, path_kept
from nnaudit.loop.script.overlay import Overlay
from nnaudit.loop.script.patches import Patches
from nnaudit.loop.script.run import Run, Session
from nnaudit.loop.script.temporary_folders import temporary_folders
from nnaudit.state import files
from nnaudit.state.files import variables
from nnaudit.state.snapshot import Subjects, preserved

T = TypeVar("T")


def run_script(
    path: Path,
    argv: list[str],
    device: str,
    seed: int,
    body: Callable[[ScriptLoop], T],
    *,
    objects: bool = False,
    loop: int | None = None,
    module: str = "",
) -> T:
    """Run the script at ``path`` in the calling thread, and ``body`` on its loop in another.

    Must be called in the main thread: scripts install signal handlers, which works there only.
    ``argv`` are the script's own arguments. With ``module`` it is run as the module of that name,
    as ``python -m`` does. With ``objects`` the file is no script: it hands over
    an object of a framework, whose own loop is run. ``loop`` says which of the script's training
    loops to audit, from 1. Returns what ``body`` returns.

    Raises:
        TargetError: there is no such script, or it never trains, or in fewer loops.
        UserCodeError: it crashed before its first optimizer step.
        Exception: whatever ``body`` raised.
    """
    name, path = str(path), path.absolute()
    if not path.is_file():
        raise TargetError(f"{path}: no such file")
    outcome: list[tuple[Any, BaseException | None]] = []
    threads: list[threading.Thread] = []
    commands = CommandChannel()

    def audit(run: Run, intra: int) -> None:
        torch.set_num_threads(intra)
        try:
            outcome.append((body(ScriptLoop(run)), None))
        except BaseException as error:
            outcome.append((None, error))
        # The run itself, and whatever was relaunched and left open.
        for _ in session.runs:
            commands.tell(Close())

    def start(run: Run) -> None:
        thread = threading.Thread(
            target=audit, args=(run, torch.get_num_threads()), name="nnaudit", daemon=True
        )
        threads.append(thread)
        thread.start()

    with ExitStack() as stack:
        # Imports the compiler, which wraps some of the functions that are then patched.
        with path_kept():
            stack.enter_context(preserved(Subjects()))
            stack.enter_context(on_device(device))
            # An audit is too short to compile for: what torch.compile made runs as it was written.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        taps = stack.enter_context(Patches())
        protection = stack.enter_context(files.protected(lambda: Overlay(files.places_of(path))))
        session = Session(
            Invocation(path, name, tuple(argv), module),
            seed,
            taps,
            protection,
            commands,
            start,
            stack.enter_context(temporary_folders()),
            device=device,
            objects=objects,
            loop=loop,
        )
        try:
            Execution(session, seed).execute()
        except BaseException as error:
            if threads:
                # The auditor waits for an answer that will not come.
                commands.answer(None, error)
            raise
        finally:
            for thread in threads:
                thread.join(timeout=10)
            commands.over = True
    value, failure = outcome[0]
    if failure is not None:
        raise failure
    result: T = value
    return result


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """Hide the accelerators from a script that is to run on the CPU."""
    hidden, cuda = "CUDA_VISIBLE_DEVICES", cast(Any, torch.cuda)
    if name != "cpu" or cuda.is_initialized():
        yield
        return
    with variables({hidden: ""}):
        yield
