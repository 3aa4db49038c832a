"""Asks a battery of checks about a loop: one at a time, isolated, within the budget."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator

from nnaudit.checks.base import Check
from nnaudit.checks.registry import BrokenPlugin
from nnaudit.context import Audit, Probe
from nnaudit.engine.job import PLUGIN
from nnaudit.errors import (
    NnauditError,
    OutOfBudgetError,
    RepeatError,
    TargetError,
    UnfitError,
    UserCodeError,
    describe,
)
from nnaudit.loop.base import Loop, Needs
from nnaudit.report import Kind, Result, Status, Text


def run_checks(
    checks: Iterable[type[Check]],
    audit: Audit,
    *,
    on_start: Callable[[type[Check]], None] = lambda check: None,
) -> Iterator[Result]:
    """Yield the result of each check as it finishes, cheap checks first.

    A check that raises costs its own answer, not the others'.

    Raises:
        TargetError: the target turned out to be unusable (an empty loader, a loss that is no
            number): every check would say the same.
    """
    for check in sorted(checks, key=_cost):
        on_start(check)
        yield run_check(check, audit)


def _cost(check: type[Check]) -> tuple[bool, int]:
    """Return what to sort a check by: those that the first few steps answer come first."""
    steps = [probe.steps for probe in check.probes] or [Probe.steps]
    return check.trains, max(steps)


def run_check(check: type[Check], audit: Audit) -> Result:
    """Run one check on an isolated state and return its result, whatever happens in it."""
    started, steps = time.perf_counter(), audit.loop.steps_taken
    result = _answer(check, audit)
    return result.model_copy(
        update={
            "seconds": time.perf_counter() - started,
            "steps": audit.loop.steps_taken - steps,
        }
    )


def _answer(check: type[Check], audit: Audit) -> Result:
    asked = check()
    try:
        for need in check.needs:
            if reason := audit.lacks(need):
                return asked.skipped(f"{reason[0].upper()}{reason[1:]}.")
        audit.clock.check()
        if not {Needs.STEPS, Needs.OWN_STEPS, Needs.UPDATES}.isdisjoint(check.needs):
            audit.require_steps()
        with audit.loop.bounded(audit.clock.check), audit.asking(check.probes), audit.isolated():
            return asked.run(audit)
    except OutOfBudgetError as error:
        return asked.inconclusive(f"Not enough time: {error}.")
    except TargetError:
        raise
    except UserCodeError as error:
        return _user_crash(asked, error, audit.loop)
    except NnauditError as error:
        # What killed the process before, a script that ended or does not come back: the words are
        # nnaudit's, the code that did it is the user's.
        return asked.answer(Status.ERROR, f"{error}.").model_copy(update={"crash": "user"})
    except Exception as error:
        return _own_crash(asked, error)


def _user_crash(check: Check, error: UserCodeError, loop: Loop) -> Result:
    """Point to the user's line or, where a library's layer raised, to what made the model."""
    if isinstance(error, UnfitError):
        return check.inconclusive(
            f"Not judged: the script cannot run on a batch of another shape than its own: {error}."
        )
    if isinstance(error, RepeatError):
        return check.inconclusive(
            "Not judged: the script cannot be executed a second time in the same process: "
            f"{describe(error.original)}."
        )
    within = error.module
    name = next((name for name, module in loop.model.named_modules() if module is within), None)
    made = None if name is None else loop.locate(within) or loop.locate("model")
    answer = check.answer(
        Status.ERROR,
        f"Your code raised {error}.",
        location=error.location or made,
        module=name or "",
        evidence=(Text(title="Traceback", text=error.traceback),),
    )
    return answer.model_copy(update={"crash": "user"})


def _own_crash(check: Check, error: Exception) -> Result:
    answer = check.answer(
        Status.ERROR,
        f"Bug in nnaudit: {check.code} raised {describe(error)}.",
        evidence=(Text(title="Traceback", text="".join(traceback.format_exception(error))),),
    )
    return answer.model_copy(update={"crash": "nnaudit"})


def plugin_errors(broken: Iterable[BrokenPlugin]) -> list[Result]:
    """Return an ``error`` result for each plug-in whose checks could not be loaded."""
    return [
        Result(
            code=PLUGIN,
            name=plugin.name,
            family=PLUGIN,
            kind=Kind.EXACT,
            status=Status.ERROR,
            message=f"The checks of plug-in {plugin.name!r} could not be loaded: {plugin.reason}.",
            crash="nnaudit",
        )
        for plugin in broken
    ]
