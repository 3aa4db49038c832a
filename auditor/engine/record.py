"""The record of an audit: events in, a report out. The same in and out of process.

Must not import torch.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from nnaudit._version import __version__
from nnaudit.engine.job import (
    PLUGIN,
    Answered,
    Asking,
    Crashed,
    Ended,
    Event,
    Finished,
    Listed,
    Measuring,
    Pictured,
    Protected,
    Question,
    Refused,
    Started,
)
from nnaudit.errors import NnauditError
from nnaudit.packages import project_url
from nnaudit.report import (
    Environment,
    Overview,
    Part,
    Report,
    Result,
    Source,
    Status,
    TargetInfo,
    Tool,
    totals_of,
)
from nnaudit.settings import Settings
from nnaudit.targets.source import source_of

FINDINGS = (Status.FAIL, Status.ERROR, Status.WARN, Status.NOTE)
"""Statuses that ask something of the reader: these have causes, and the source is quoted."""

CONTEXT, WIDEST = 2, 300
"""Lines of source quoted before and after a finding's line; characters of each."""

Located = TypeVar("Located", Part, Result)


class RefusedError(NnauditError):
    """The audit could not be done; ``exit_code`` is the one designed for the reason."""

    def __init__(self, message: str, exit_code: int, detail: str = "") -> None:
        self.exit_code = exit_code
        self.detail = detail
        super().__init__(message)
        if detail:
            self.add_note(detail)


@dataclass
class Record:
    """What children said so far, and where the present one is."""

    started: Started | None = None
    listed: tuple[Question, ...] | None = None
    results: dict[str, Result] = field(default_factory=dict)
    crashed: Crashed | None = None
    overview: Overview = field(default_factory=Overview)
    finished: bool = False
    asking: str = ""
    measuring: list[str] = field(default_factory=list)
    known_fatal: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    output: str = ""
    protection: Protected | None = None
    ended: Ended | None = None

    def take(self, event: Event) -> None:
        """Write ``event`` down.

        Raises:
            RefusedError: the child said that the audit cannot be done.
        """
        match event:
            case Started():
                self.started = self.started or event
            case Listed():
                self.listed = event.questions
            case Asking(code=code):
                self.asking = code
            case Measuring(probe=probe, begins=True):
                self.measuring.append(probe)
            case Measuring():
                self.measuring.pop()
            case Answered(result=result):
                # Plug-ins that could not be loaded share one code.
                plugin = f"{result.code} {result.name}"
                self.results[plugin if result.code == PLUGIN else result.code] = result
                self.steps += result.steps
                self.asking = ""
            case Crashed():
                self.crashed = self.crashed or event
            case Pictured(overview=overview):
                self.overview = overview
            case Refused(message=message, exit_code=code, detail=detail):
                raise RefusedError(message, code, detail)
            case Finished(steps=steps):
                # More than the results' own where a step was tried before the first question.
                self.steps = max(self.steps, steps)
                self.finished = True
            case Protected():
                self.protection = event
            case Ended():
                self.ended = event

    @property
    def protection_remark(self) -> str:
        """Why the user's files are not protected by the kernel; empty where they are."""
        if self.protection is None or not self.protection.why:
            return ""
        return (
            f"your files are protected at the level {self.protection.level}, because the kernel "
            f"does not allow more ({self.protection.why}); see docs/safety.md"
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the target's author should know of the source."""
        return self.started.remarks if self.started else ()

    def remaining(self) -> tuple[str, ...]:
        """Return the codes of the selected checks that have no result yet."""
        questions = self.started.questions if self.started else ()
        return tuple(q.code for q in questions if q.code not in self.results)

    def report(
        self,
        path: str,
        settings: Settings,
        *,
        module: str = "",
        arguments: tuple[str, ...] = (),
        command: str = "",
        seconds: float,
    ) -> Report:
        """Return what is known by now as a report.

        ``module`` and ``arguments`` are as in a job, ``seconds`` is what the audit took.
        """
        started = self.started
        target = _target(started.target) if started else TargetInfo(name=path, path=path)
        if self.ended is not None and self.ended.files:
            parts = (*target.parts, _files_part(self.ended))
            target = target.model_copy(update={"parts": parts})
        questions = started.questions if started else ()
        pages = documentation_address(settings)
        results = _ordered(self.results, questions)
        results = tuple(_documented(result, questions, pages) for result in results)
        return Report(
            tool=Tool(
                version=__version__,
                command=command or shlex.join(["nnaudit", path]),
                seed=settings.seed,
                preset=settings.preset,
                budget=settings.budget,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
            environment=started.environment if started else Environment(),
            target=target.model_copy(update={"module": module, "arguments": arguments}),
            results=results,
            overview=self.overview,
            totals=totals_of(results, steps=self.steps, seconds=seconds),
        )


def _ordered(results: dict[str, Result], questions: tuple[Question, ...]) -> tuple[Result, ...]:
    """Return the results in battery order, each finding with the one that explains it.

    That is a failed check of which it may be the consequence, or the first check that crashed in
    the same way: a program that cannot take a step is broken once, not once for each check.
    """
    rank = {question.code: i for i, question in enumerate(questions)}
    placed = sorted(results.values(), key=lambda result: rank.get(result.code, len(rank)))
    explains = {question.code: question.consequence_of for question in questions}
    failed = {
        code
        for code, result in results.items()
        if result.status is Status.FAIL and not result.suppressed
    }

    crashed = {_crash(r): r.code for r in reversed(placed) if r.status is Status.ERROR}

    def with_cause(result: Result) -> Result:
        if result.status not in FINDINGS:
            return result
        cause = next((c for c in explains.get(result.code, ()) if c in failed), "")
        if result.status is Status.ERROR:
            first = crashed[_crash(result)]
            cause = cause or (first if first != result.code else "")
        return result.model_copy(update={"cause": cause})

    return tuple(_located(_quoted(with_cause(result))) for result in placed)


def documentation_address(settings: Settings) -> str:
    """Return where the documentation can be read: as set, else as the package says; or nothing."""
    return settings.docs_url or project_url("nnaudit", "Documentation")


def _documented(result: Result, questions: tuple[Question, ...], pages: str) -> Result:
    """Return the result with the address of its check's page, a finding with what it explains.

    ``pages`` is where the documentation lies; where that is nowhere, our checks have no address.
    """
    question = next((q for q in questions if q.code == result.code), None)
    if question is None:
        return result
    address = question.url
    if address and "://" not in address:
        address = f"{pages}/{address}" if pages else ""
    told = question.explanation if result.status in FINDINGS else {}
    return result.model_copy(update={"url": address, "explanation": told})


def _crash(result: Result) -> str:
    """Return what crashed, without what was being done at the time."""
    return result.message.partition(" while ")[0]


def _nearby(path: str) -> str:
    """Name a file in the current folder from there: a report is read on other machines, too."""
    inside = path and Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if inside else path


def _quoted(result: Result) -> Result:
    """Return a finding with the lines of source around its place, where these can be read."""
    if (place := result.location) is None or result.status not in FINDINGS:
        return result
    lines = source_of(place.file).lines
    if not 0 < place.line <= len(lines):
        return result
    first = max(1, place.line - CONTEXT)
    around = tuple(line[:WIDEST] for line in lines[first - 1 : place.line + CONTEXT])
    return result.model_copy(update={"source": Source(first=first, lines=around)})


def _located(model: Located) -> Located:
    """Return a result, or a part of the target, with the file of its location named from here."""
    if (location := model.location) is None:
        return model
    here = location.model_copy(update={"file": _nearby(location.file)})
    return model.model_copy(update={"location": here})


def _files_part(ended: Ended) -> Part:
    """Tell what the program wrote."""
    names = ", ".join(_nearby(name) for name in ended.names)
    more = ended.files - len(ended.names)
    listed = f"{names} and {more} more" if more else names
    goes = f"kept in {ended.kept}" if ended.kept else "written to a scratch folder instead"
    return Part(name="files", description=f"{listed}: {goes}", origin="user")


def _target(target: TargetInfo) -> TargetInfo:
    parts = tuple(_located(part) for part in target.parts)
    return target.model_copy(update={"path": _nearby(target.path), "parts": parts})
