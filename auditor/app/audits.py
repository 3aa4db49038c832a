"""Audits the targets of one call, and says with which exit code it ends. Must not import torch."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from nnaudit.app import runs
from nnaudit.app.messages import FINDINGS, OK, OWN_FAULT, USAGE, USER_CRASH, quote, tell
from nnaudit.engine.job import Answered, Event, Job
from nnaudit.engine.record import Record, RefusedError
from nnaudit.errors import FIRST_STEP, raised
from nnaudit.processes import supervisor
from nnaudit.processes.child import Interruption
from nnaudit.progress import Progress
from nnaudit.report import COUNTED, Report, Status
from nnaudit.reports.text import one_line
from nnaudit.settings import Settings


@dataclass(frozen=True)
class Call:
    """What one call of the command line audits, and how.

    Attributes:
        targets: each a file and the words that its script is given.
        module, form, keep_files: as in :class:`Job`.
        jobs: targets audited at once.
        verbose: whether the programs' own output is shown.
        compared: what compares a report with the baseline.
        only_unpassed: whether only that is asked which did not pass last time.
        note: given what makes a report of what is known by now of the target with that number,
            whenever that has grown.
    """

    targets: tuple[tuple[str, tuple[str, ...]], ...]
    settings: Settings
    module: str = ""
    form: Literal["module", "script"] | None = None
    keep_files: Path | None = None
    jobs: int = 1
    verbose: bool = False
    compared: Callable[[Report], Report] = lambda report: report
    only_unpassed: bool = False
    note: Callable[[int, Callable[[], Report]], None] = lambda number, known: None

    def settings_for(self, path: str) -> Settings:
        """Return the settings of one target's audit.

        Raises:
            UsageError: the report of the last audit cannot be read.
        """
        if not self.only_unpassed:
            return self.settings
        codes = runs.unpassed(path)
        if not codes:
            tell(f"{path}: no check is known not to pass, so all are run")
            return self.settings
        return self.settings.model_copy(update={"select": codes, "extend_select": ()})


def audit_all(call: Call, interruption: Interruption) -> tuple[list[Report], int]:
    """Audit every target; return the reports there are, in order, and the worst exit code."""
    jobs = min(call.jobs, len(call.targets))
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None

    def audit_one(number: int) -> tuple[Report | None, int]:
        path, arguments = call.targets[number]
        job = Job(
            path=path,
            module=call.module,
            arguments=arguments,
            form=call.form,
            settings=call.settings_for(path),
            threads=threads,
            keep=str(call.keep_files or ""),
        )
        return _audit_one(number, job, call, interruption, shows_progress=jobs == 1)

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(audit_one, range(len(call.targets))))
    reports = [report for report, _ in outcomes if report is not None]
    if interruption.signal:
        return reports, interruption.exit_code
    return reports, worst(code for _, code in outcomes)


def worst(codes: Iterable[int]) -> int:
    """A target that could not be audited outweighs findings: it must not look like an answer."""
    return max(codes, key=(OK, FINDINGS, USER_CRASH, USAGE, OWN_FAULT).index)


def _audit_one(
    number: int, job: Job, call: Call, interruption: Interruption, *, shows_progress: bool
) -> tuple[Report | None, int]:
    progress: Any = Progress(job.path, findings=call.verbose) if shows_progress else nullcontext()
    command = shlex.join(["nnaudit", *sys.argv[1:]])
    try:
        with progress as shown:

            def take(event: Event, record: Record) -> None:
                if shown:
                    shown.take(event, record)
                if isinstance(event, Answered):
                    known = partial(supervisor.so_far, job, record, command=command)
                    call.note(number, lambda: call.compared(known()))

            report, record = supervisor.audit(
                job,
                command=command,
                on_event=take,
                interruption=interruption,
            )
    except RefusedError as error:
        tell(str(error))
        if error.detail and (call.verbose or error.exit_code == USER_CRASH):
            quote(error.detail)
        return None, error.exit_code
    for remark in filter(None, (record.protection_remark, *record.remarks)):
        tell(remark)
    if call.verbose and record.output:
        click.echo(f"--- output of {one_line(job.path)}", err=True)
        quote(record.output)
        click.echo("---", err=True)
    report = call.compared(report)
    call.note(number, lambda: report)
    return report, _exit_code(report, record, job.settings)


def _exit_code(report: Report, record: Record, settings: Settings) -> int:
    findings = COUNTED[settings.fail_on]
    crash = _crash_sentence(record)
    if crash:
        tell(crash)
    if any(result.is_new for result in report.with_status(*findings)):
        return FINDINGS
    crashes = {result.crash for result in report.with_status(Status.ERROR) if result.is_new}
    if "nnaudit" in crashes:
        return OWN_FAULT
    # Too few answers, as when the budget was too small for most, are no verdict either.
    if crashes or crash or report.mostly_unanswered:
        return USER_CRASH
    return OK


def _crash_sentence(record: Record) -> str:
    """Say how the first training step failed; nothing when it did not."""
    if record.crashed is not None:
        return raised(record.crashed.message, record.crashed.location)
    return record.known_fatal.get(FIRST_STEP, "")
