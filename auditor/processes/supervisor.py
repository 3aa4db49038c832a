"""The parent's side: starts a child per target, listens, and outlives whatever happens to it.

Must not import torch. A child that hangs, exits or is killed costs the check in progress; a new
child goes on with the rest, and does not try again what killed the first.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

from pydantic import ValidationError

from nnaudit.engine.job import PICTURES, Event, Job, Question, Started
from nnaudit.engine.record import Record, RefusedError
from nnaudit.processes.child import Child, InterruptedAuditError, Interruption, Start, by_command
from nnaudit.report import Report, Result, Status, Text

TAIL = 4000
"""Characters of a dead child's output that its result shows."""

LOADING = 120.0
"""Seconds that importing torch and building the data may take at least, however short the timeout
for a check is."""

INTERRUPTED = "was interrupted"
"""How an audit ends that somebody did not want to wait for."""

CHILDREN = 6
"""Children started for one target before what remains is given up."""


def audit(
    job: Job,
    *,
    command: str = "",
    on_event: Callable[[Event, Record], None] | None = None,
    interruption: Interruption | None = None,
    start: Start = by_command,
) -> tuple[Report, Record]:
    """Audit one target in child processes and return the report with what led to it.

    ``interruption`` says when to stop; the report then holds what was answered. ``start`` is how
    a child begins.

    Raises:
        RefusedError: the target cannot be loaded, the settings name something unknown, ...
    """
    began = time.monotonic()
    record = Record()
    for _ in range(CHILDREN):
        death = _run_child(
            _next_job(job, record, time.monotonic() - began),
            record,
            on_event or _ignore,
            interruption,
            start,
        )
        if record.finished:
            break
        if death.how == INTERRUPTED:
            _stop(record, interruption)
            break
        _record_crash(job, record, death)
    _give_up(record)
    seconds = time.monotonic() - began
    report = record.report(
        job.path,
        job.settings,
        module=job.module,
        arguments=job.arguments,
        command=command,
        seconds=seconds,
    )
    return report, record


def so_far(job: Job, record: Record, *, command: str = "") -> Report:
    """Return what is known of an audit that is under way: each check without an answer says so."""
    known = copy(record)
    known.results = dict(record.results)
    _leave_open(known, "Not answered: the audit had not come to it yet.")
    return known.report(
        job.path,
        job.settings,
        module=job.module,
        arguments=job.arguments,
        command=command,
        seconds=sum(result.seconds for result in record.results.values()),
    )


def inspect(job: Job) -> Started:
    """Load one target in a child process, and return what was found without auditing it.

    Raises:
        RefusedError: the target cannot be loaded.
    """
    started = load(job).started
    assert started is not None
    return started


def load(job: Job) -> Record:
    """Load one target in a child process; the record says what was found and how it was kept safe.

    Raises:
        RefusedError: the target cannot be loaded.
    """
    record = Record()
    death = _run_child(job.model_copy(update={"remaining": (), "inspect": True}), record)
    if record.started is None:
        _record_crash(job, record, death)
    return record


def battery(job: Job) -> tuple[Question, ...]:
    """Return the checks that the settings of ``job`` select, without loading a target.

    Raises:
        RefusedError: the settings name something unknown.
    """
    record = Record()
    # No code of the user's is run.
    settings = job.settings.model_copy(update={"sandbox": "off"})
    death = _run_child(job.model_copy(update={"battery": True, "settings": settings}), record)
    if record.listed is None:
        raise RefusedError(f"the process that lists the checks {death.how}", 3, death.output)
    return record.listed


def _ignore(event: Event, record: Record) -> None:
    return None


def _next_job(job: Job, record: Record, elapsed: float) -> Job:
    update: dict[str, object] = {"began": time.monotonic()}
    if record.started is not None:
        update |= {
            "remaining": record.remaining(),
            "known_fatal": record.known_fatal,
            "elapsed": elapsed,
        }
    return job.model_copy(update=update)


@dataclass(frozen=True)
class Death:
    """How a child ended before it had finished, as a phrase: "hung for 300 s", "called exit(3)"."""

    how: str
    output: str


def _run_child(
    job: Job,
    record: Record,
    on_event: Callable[[Event, Record], None] = _ignore,
    interruption: Interruption | None = None,
    start: Start = by_command,
) -> Death:
    how = ""
    with Child(job, interruption, start) as child:
        try:
            for event in child.events(lambda: _patience(job, record)):
                record.take(event)
                on_event(event, record)
        except TimeoutError:
            how = f"hung for {_patience(job, record):g} s"
        except InterruptedAuditError:
            how = INTERRUPTED
        except ValidationError:
            how = "wrote to nnaudit's own pipe"
        finally:
            child.end()
            record.output += child.output()
            if child.ended is not None:
                record.take(child.ended)
        why = child.ended.why if child.ended else ""
        return Death(how or why or _manner(child.code), child.output()[-TAIL:])


def _patience(job: Job, record: Record) -> float:
    """Return for how many seconds a child may be silent now."""
    loading = not (record.asking or record.measuring)
    return max(job.settings.check_timeout, LOADING) if loading else job.settings.check_timeout


def _manner(code: int) -> str:
    if code >= 0:
        return f"ended the process with exit code {code}"
    names = {one.value: one.name for one in signal.Signals}
    name = names.get(-code, f"signal {-code}")  # those for real-time use have no names
    why = {
        "SIGKILL": ", as the system does when memory runs out",
        "SIGSEGV": ", a segmentation fault",
    }
    return f"was killed by {name}{why.get(name, '')}"


def _record_crash(job: Job, record: Record, death: Death) -> None:
    """Charge a child's death to what it was doing.

    Raises:
        RefusedError: it died before the target was loaded.
    """
    if record.started is None:
        raise RefusedError(
            f"{job.path}: your code {death.how} while it was being loaded", 4, death.output
        )
    stage = record.measuring[-1] if record.measuring else ""
    doing = f"{record.asking}" if record.asking else "the audit"
    reason = f"Your code {death.how} during {stage or doing}"
    if stage:
        record.known_fatal[stage] = reason
    if record.asking:
        question = next(q for q in record.started.questions if q.code == record.asking)
        record.results[record.asking] = _crash(question, reason, death.output)
    elif not stage:
        record.known_fatal[PICTURES] = reason
    record.asking, record.measuring = "", []


def _stop(record: Record, interruption: Interruption | None) -> None:
    """Say of each check without an answer why it has none.

    Raises:
        RefusedError: no check was begun.
    """
    code = interruption.exit_code if interruption else 1
    if record.started is None:
        raise RefusedError("interrupted while the target was being loaded", code)
    _leave_open(record, "Not answered: the audit was interrupted.")


def _leave_open(record: Record, message: str) -> None:
    for question in record.started.questions if record.started else ():
        if question.code not in record.results:
            record.results[question.code] = _unanswered(question, Status.INCONCLUSIVE, message)


def _crash(question: Question, reason: str, output: str) -> Result:
    evidence = (Text(title="Its last output", text=output),) if output else ()
    result = _unanswered(question, Status.ERROR, f"{reason}.")
    return result.model_copy(update={"evidence": evidence, "crash": "user"})


def _unanswered(question: Question, status: Status, message: str) -> Result:
    return Result(
        code=question.code,
        name=question.name,
        family=question.family,
        kind=question.kind,
        question=question.question,
        status=status,
        message=message,
    )


def _give_up(record: Record) -> None:
    questions = record.started.questions if record.started else ()
    for question in questions:
        if question.code not in record.results:
            reason = f"Not run: the process died {CHILDREN} times"
            record.results[question.code] = _crash(question, reason, "")
