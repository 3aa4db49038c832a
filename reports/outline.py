"""What a report says first, what belongs together, and what comes later.

Every format for people (terminal, HTML) tells the story in this order and with this grouping,
so that two formats never disagree about the verdict.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from nnaudit.report import ANSWERS, Change, Kind, Moved, Report, Result, Slower, Status
from nnaudit.reports.text import format_noisy, format_seconds, one_line
from nnaudit.wording import count, verb

#: Worst first. A crash is never a pass, so it stands next to the failures.
SEVERITY = (
    Status.FAIL,
    Status.ERROR,
    Status.WARN,
    Status.NOTE,
    Status.INCONCLUSIVE,
    Status.SKIP,
    Status.PASS,
)

#: Statuses that ask something of the reader; the others are only accounted for.
FINDINGS = (Status.FAIL, Status.ERROR, Status.WARN, Status.NOTE)

#: The most certain evidence first.
_CERTAINTY = (Kind.EXACT, Kind.STATISTICAL, Kind.JUDGEMENT)

#: More consequences of one kind are listed by their codes only.
_NAMED = 4

_BROKEN = (Status.FAIL, Status.ERROR)

#: A word for each status where it labels one result.
LABELS = {
    Status.FAIL: "Fail",
    Status.ERROR: "Crashed",
    Status.WARN: "Warning",
    Status.NOTE: "Note",
    Status.INCONCLUSIVE: "Inconclusive",
    Status.SKIP: "Skipped",
    Status.PASS: "Pass",
}

#: What is said of a result that differs from the baseline, worst first.
CHANGES = {
    Change.NEW: "new",
    Change.WORSE: "more severe than in the baseline",
    Change.UNCHANGED: "unchanged since the baseline",
    Change.MILDER: "less severe than in the baseline",
    Change.UNJUDGED: "found in the baseline, not judged now",
    Change.FIXED: "fixed since the baseline",
}

#: Addresses that may be links: a report is a file that anybody may have written.
_OPENABLE = re.compile(r"(https?|file)://[^\s\x00-\x1f\x7f-\x9f]+")

#: Whose code it was that crashed, as a remark to the reader.
CRASHES = {"": "", "user": "in your code", "nnaudit": "in nnaudit itself: please report it"}


@dataclass(frozen=True, slots=True)
class Finding:
    """A result that asks for action, with the findings that go away when it is fixed."""

    result: Result
    consequences: tuple[Result, ...] = ()

    @property
    def told(self) -> tuple[Result, ...]:
        """The consequences that have something of their own to say."""
        return tuple(c for c in self.consequences if c.message != self.result.message)

    @property
    def alike(self) -> str:
        """The names of the consequences with the same message; of many, the codes."""
        told = self.told
        alike = [c for c in self.consequences if c not in told]
        return compact(alike) if len(alike) > _NAMED else ", ".join(map(title, alike))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first sentence of a report: ``status`` picks its colour and glyph."""

    status: Status
    headline: str


@dataclass(frozen=True, slots=True)
class Reason:
    """The results that were not judged for one and the same reason."""

    text: str
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class QuotedLine:
    """A line of the user's source; ``marked`` is the one that a finding is about."""

    number: int
    text: str
    marked: bool


def quoted(result: Result) -> tuple[QuotedLine, ...]:
    """Return the source around the result's place, without the indentation all lines share."""
    if result.source is None or result.location is None:
        return ()
    text = textwrap.dedent("\n".join(line.expandtabs(4) for line in result.source.lines))
    return tuple(
        QuotedLine(number, line.rstrip(), number == result.location.line)
        for number, line in enumerate(text.split("\n"), result.source.first)
    )


@dataclass(frozen=True, slots=True)
class Score:
    """How many of a family's checks passed, of those that came to an answer."""

    family: str
    passed: int
    answered: int


def scores(report: Report) -> tuple[Score, ...]:
    """Return the score of each family of which a check came to an answer, in battery order."""
    families: dict[str, list[Result]] = {}
    for result in report.with_status(*ANSWERS):
        families.setdefault(result.family, []).append(result)
    return tuple(
        Score(family, sum(result.status is Status.PASS for result in results), len(results))
        for family, results in families.items()
    )


def link(result: Result) -> str:
    """Return the address of the check's documentation, if it is one that a browser may open."""
    return result.url if _OPENABLE.fullmatch(result.url) else ""


def title(result: Result) -> str:
    """Return the result's code and name, as it is called everywhere."""
    return f"{result.code} {result.name}"


def compact(results: Sequence[Result]) -> str:
    """Return the codes of ``results`` in little space: ``DATA101 102, LOSS101-104``."""
    families: dict[str, list[int]] = {}
    for result in results:
        match = re.fullmatch(r"([A-Z]+)(\d{1,9})", result.code)
        numbers = families.setdefault(match[1] if match else one_line(title(result)), [])
        if match:
            numbers.append(int(match[2]))
    return ", ".join(f"{family}{_ranges(numbers)}" for family, numbers in families.items())


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    joined = ("-" if len(run) > 2 else " " for run in runs)
    return " ".join(
        str(run[0]) if len(run) == 1 else f"{run[0]}{joint}{run[-1]}"
        for run, joint in zip(runs, joined, strict=True)
    )


def findings(report: Report, status: Status) -> tuple[Finding, ...]:
    """Return the findings of ``status``, each with its consequences, in the order to mend them.

    New ones come first, then those that explain others, then the more certain ones. A consequence
    never stands alone.
    """
    by_code = {result.code: result for result in report.results}
    groups: dict[int, list[Result]] = {}
    for result in report.with_status(*FINDINGS):
        root = _root(result, by_code)
        if root is not result:
            groups.setdefault(id(root), []).append(result)
    folded = {id(result) for group in groups.values() for result in group}
    found = (
        Finding(result, tuple(groups.get(id(result), ())))
        for result in report.with_status(status)
        if id(result) not in folded
    )
    return tuple(sorted(found, key=_order))


def _order(finding: Finding) -> tuple[tuple[bool, int], int, int]:
    kind = _CERTAINTY.index(finding.result.kind)
    return rank(finding.result), -len(finding.consequences), kind


def _root(result: Result, by_code: dict[str, Result]) -> Result:
    seen = {result.code}
    root = result
    while (cause := by_code.get(root.cause)) is not None and _explains(cause):
        if cause.code in seen:
            return result  # a ring of causes has no first one: each stands for itself
        seen.add(cause.code)
        root = cause
    return root


def _explains(cause: Result) -> bool:
    return cause.status in _BROKEN and not cause.suppressed


def ordered(report: Report) -> tuple[Finding, ...]:
    """Return all findings, what the baseline has last, else worst first."""
    every = [finding for status in FINDINGS for finding in findings(report, status)]
    return tuple(sorted(every, key=_order))


def rank(result: Result) -> tuple[bool, int]:
    """Return what sorts findings: what may fail a build first, then by severity."""
    return not result.is_new, SEVERITY.index(result.status)


def reasons(report: Report, status: Status) -> tuple[Reason, ...]:
    """Group the results of ``status`` by their message: many lack the same part of the target."""
    groups: dict[str, list[Result]] = {}
    for result in report.with_status(status):
        groups.setdefault(result.message, []).append(result)
    return tuple(Reason(text, tuple(results)) for text, results in groups.items())


def tallied(status: Status, number: int) -> str:
    """Return the word that follows a number of results: ``1 warning``, ``2 warnings``."""
    plural = "s" if number != 1 and status in (Status.WARN, Status.NOTE) else ""
    return LABELS[status].lower() + plural


def counts(report: Report) -> dict[Status, int]:
    """Return how many results have each status, worst first, zeros left out."""
    numbers = {status: len(report.with_status(status)) for status in SEVERITY}
    return {status: number for status, number in numbers.items() if number}


def verdict(report: Report) -> Verdict:
    """Judge one target in one sentence. Only passes make a pass."""
    judged = _verdict(report)
    remarks = [_news(report, judged.status)]
    if hidden := len(report.suppressed):
        remarks.append(f"{count(hidden, 'finding')} {verb(hidden, 'are', 'is')} suppressed")
    return Verdict(judged.status, ", ".join(part for part in (judged.headline, *remarks) if part))


def _verdict(report: Report) -> Verdict:
    number = counts(report)
    total = len(report.results)
    of_all = f"of {total} {'check' if total == 1 else 'checks'}"
    fails, errors = number.get(Status.FAIL, 0), number.get(Status.ERROR, 0)
    if fails:
        crashed = f" and {errors} crashed" if errors else ""
        return Verdict(Status.FAIL, f"{fails} {of_all} {verb(fails, 'fail')}{crashed}")
    if errors:
        return Verdict(Status.ERROR, f"{errors} {of_all} crashed")
    if report.mostly_unanswered and report.answered:
        asked = f"{report.answered} of {report.applicable} checks that apply"
        return Verdict(Status.INCONCLUSIVE, f"No verdict: only {asked} came to an answer")
    if warns := number.get(Status.WARN, 0):
        return Verdict(Status.WARN, f"No check fails, {warns} {of_all} {verb(warns, 'warn')}")
    return _quiet_verdict(number, total, of_all)


def _news(report: Report, status: Status) -> str:
    """Say how much of what decides the verdict is new since the baseline."""
    if report.baseline is None or status not in (*_BROKEN, Status.WARN):
        return ""
    deciding = report.with_status(*(_BROKEN if status in _BROKEN else (status,)))
    news = sum(result.is_new for result in deciding)
    if news == len(deciding):
        return "new since the baseline"
    return f"{news} of them new" if news else "none of them new"


def _quiet_verdict(number: dict[Status, int], total: int, of_all: str) -> Verdict:
    passed = number.get(Status.PASS, 0)
    if not total:
        return Verdict(Status.INCONCLUSIVE, "No check was run")
    if not passed and Status.NOTE not in number:
        return Verdict(Status.INCONCLUSIVE, f"No verdict: none {of_all} could be judged")
    if passed == total:
        return Verdict(
            Status.PASS, "The check passes" if total == 1 else f"All {total} checks pass"
        )
    return Verdict(
        Status.PASS, f"No check fails, {passed} {of_all} {verb(passed, 'pass', 'passes')}"
    )


@dataclass(frozen=True, slots=True)
class Since:
    """One thing to say about the comparison with a baseline, such as ``new: DATA104 shuffling``."""

    label: str
    text: str


def since(report: Report) -> tuple[Since, ...]:
    """Return what to say about the comparison with the baseline; nothing where there is none."""
    baseline = report.baseline
    if baseline is None:
        return ()
    groups = {
        label: [title(result) for result in report.results if result.change is change]
        for change, label in _GROUPS.items()
    }
    lines = [Since(label, ", ".join(names)) for label, names in groups.items() if names]
    if not lines:
        lines.append(Since("findings", "none, now or in the baseline"))
    if baseline.unasked:
        lines.append(Since("not run now", ", ".join(baseline.unasked)))
    if baseline.slower:
        lines.append(Since("slower", ", ".join(_slower(item) for item in baseline.slower)))
    if baseline.moved:
        lines.append(Since("changed", "; ".join(_moved(item) for item in baseline.moved)))
    made = f", created {baseline.created}" if baseline.created else ""
    by = f" by nnaudit {baseline.version}" if baseline.version else ""
    remark = f". {baseline.remark}" if baseline.remark else ""
    return (*lines, Since("baseline", f"{baseline.file}{made}{by}{remark}"))


_GROUPS = {
    Change.NEW: "new",
    Change.WORSE: "more severe",
    Change.MILDER: "less severe",
    Change.FIXED: "fixed",
    Change.UNJUDGED: "not judged now",
    Change.UNCHANGED: "unchanged",
}


def _slower(item: Slower) -> str:
    return f"{item.name} ({format_seconds(item.before)}, now {format_seconds(item.now)})"


def _moved(item: Moved) -> str:
    before = format_noisy(item.before, item.before_noise)
    return f"{item.name} ({before}, now {format_noisy(item.now, item.now_noise)})"


def verdict_of_all(reports: Sequence[Report]) -> Verdict:
    """Judge several targets in one sentence; the worst one decides the status."""
    if not reports:
        return Verdict(Status.INCONCLUSIVE, "No target was audited")
    verdicts = [verdict(report) for report in reports]
    worst = min((v.status for v in verdicts), key=SEVERITY.index)
    same = sum(v.status is worst for v in verdicts)
    every = f"{same} of {len(reports)} targets"
    phrases = {
        Status.FAIL: f"{every} {verb(same, 'fail')}",
        Status.ERROR: f"{every} crashed",
        Status.WARN: f"No target fails, {every} {verb(same, 'warn')}",
        Status.INCONCLUSIVE: f"{every} could not be judged",
    }
    return Verdict(worst, phrases.get(worst, f"All {len(reports)} targets pass"))
