"""Finding the validation of a script that has not come to it before its first training step.

Most scripts validate in a function that is called after the epoch, and many make the loader there,
or have none. The script is let go that far once, its steps undone, and what it evaluates its
network on in between is its validation. What it does not show by then, conventional names do: a
file may define ``val_loader()`` beside a loop that makes no use of it.
"""

from __future__ import annotations

import re
import time
from types import FunctionType
from typing import Any

from nnaudit.errors import NnauditError, user_code
from nnaudit.loop.script.channel import StepRequest
from nnaudit.loop.script.evaluation import evaluated_batches, scored_calls, validation_loader
from nnaudit.loop.script.run import Run
from nnaudit.loop.script.steps import ScriptSteps
from nnaudit.state.snapshot import preserved
from nnaudit.targets import callstack
from nnaudit.targets.definitions import NAMES
from nnaudit.targets.source import source_of

SECONDS = 10.0
"""What a script does between two epochs may take so long; sampling is cut off then."""

PATIENCE = 4.0
"""Seconds after which the script is not let go any further."""

ROUNDS = {"epochs": 12, "steps": 300}
"""Within so many a script is expected to validate; steps are those of one without a loader."""

LEFT = 3
"""Epochs that an audit wants to see the end of after that."""

_EVALUATES = re.compile(
    r"\b(eval|evaluat\w*|no_grad|inference_mode|valid\w*|val|val_\w*|\w*_val|test\w*|\w*_test"
    r"|dev|accuracy|score\w*)\b",
    re.IGNORECASE,
)


def find_validation(run: Run, steps: ScriptSteps) -> Any:
    """Return what the script of ``run`` validates with, a loader or batches; None if nothing.

    Lives in the auditor's thread. The state is put back.
    """
    if run.val_loader is None and run.roles is not None:
        if run.roles.propagates and not run.loop.counted and steps.invoke(_may_evaluate):
            _go_on(run, steps)
        run.val_loader = steps.invoke(lambda: _chosen(run))
    run.evaluated.close()
    return run.val_loader


def _may_evaluate() -> bool:
    """Whether the files that the script is in say anything of evaluation."""
    files = {frame.f_code.co_filename for frame in callstack.user_frames()}
    return any(_EVALUATES.search(source_of(file).text) for file in files)


def _go_on(run: Run, steps: ScriptSteps) -> None:
    """Let the script come to its validation: to the ends of epochs, or some steps further."""
    assert run.roles is not None
    batch = None if run.without_loader else run.roles.batch
    rounds = ROUNDS["steps"] if run.without_loader else ROUNDS["epochs"] if run.has_epochs else 1
    started, executions = time.perf_counter(), run.reruns
    gone = 0
    with preserved(run.subjects):
        while gone < rounds and not run.evaluated and time.perf_counter() - started < PATIENCE:
            order = StepRequest(
                batch,
                evaluates=True,
                ends_epoch=run.has_epochs,
                deadline=time.perf_counter() + SECONDS,
            )
            gone += 1
            try:
                steps.command(order)
            except NnauditError:
                return
            if run.reruns != executions:
                return
        if run.has_epochs and 0 < run.span.epochs < gone + 1 + LEFT:
            # Others will want to see an epoch end.
            steps.command(StepRequest(batch, restarts=True))


def _chosen(run: Run) -> Any:
    """Settle what the validation is; in the script's thread."""
    seen, roles = run.evaluated, run.roles
    assert roles is not None
    loader = validation_loader(run.registers, run.train_loader, seen.loaders, seen.names)
    if loader is not None:
        return loader
    named = evaluated_batches(roles, seen.calls)
    return (
        named
        or evaluated_batches(roles, scored_calls(roles, seen.unnamed))
        or (_by_convention(run))
    )


def _by_convention(run: Run) -> Any:
    """Return the loader that the script's file defines under a conventional name."""
    defined = run.variables
    for name in NAMES["val_loader"]:
        function = defined.get(name)
        if not isinstance(function, FunctionType) or _needs_arguments(function):
            continue
        if function.__code__.co_filename != str(run.session.path):
            continue
        try:
            with user_code(f"calling {name}()"):
                made = function()
        except NnauditError:
            return None
        return made if hasattr(made, "__iter__") and not hasattr(made, "__next__") else None
    return None


def _needs_arguments(function: FunctionType) -> bool:
    code = function.__code__
    return code.co_argcount > len(function.__defaults__ or ()) or code.co_kwonlyargcount > 0
