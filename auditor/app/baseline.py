"""Compares reports with earlier ones, so that a build can fail for what is new alone.

Must not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

from nnaudit.report import (
    Change,
    Comparison,
    Moved,
    Numbers,
    Report,
    Result,
    Slower,
    Status,
)

#: Findings from mild to grave. A crash is no answer, so it has no place among them.
SEVERITY = (Status.NOTE, Status.WARN, Status.FAIL)

TIMES, SECONDS = 2.0, 2.0
"""What took more than twice as long, and two seconds more, is slower: on a machine that others
use, too, the same check was seen to take up to twice its time. It is told and never fails."""

ERRORS = 4.0
"""Numbers moved if they are so many standard errors of their difference apart: one in 16,000 does
by chance. Losses of one seed are the same to the last bit until something in the program changes.
"""

_Key = tuple[str, str]


def compare(reports: Iterable[Report], baseline: Sequence[Report], file: str) -> list[Report]:
    """Return ``reports`` with what changed since ``baseline``, which was read from ``file``.

    A target of which the baseline holds no report is compared with nothing: all its findings are
    new.
    """
    return [_compare(report, _counterpart(report, baseline), file) for report in reports]


def _counterpart(report: Report, baseline: Sequence[Report]) -> Report | None:
    """Find the report of the same target: by its path and its arguments, else by one alone.

    By its path, or by its name, only where no other has it.
    """
    for same in (_call, _path, _name):
        found = [old for old in baseline if same(old) == same(report)]
        if len(found) == 1:
            return found[0]
    return None


def _call(report: Report) -> tuple[str, ...]:
    return _path(report), *report.target.arguments


def _path(report: Report) -> str:
    return PurePath(report.target.path).as_posix()


def _name(report: Report) -> str:
    return report.target.name


def _compare(report: Report, old: Report | None, file: str) -> Report:
    before = {_key(result): result for result in old.results} if old else {}
    results = tuple(_changed(result, before.get(_key(result))) for result in report.results)
    if old is None:
        comparison = Comparison(
            file=file, remark="It has no report of this target, so every finding counts as new."
        )
    else:
        comparison = Comparison(
            file=file,
            created=old.tool.created,
            version=old.tool.version,
            unasked=_unasked(report, old),
            slower=_slower(report, old),
            moved=_moved(report, old),
            remark=_remark(report, old),
        )
    return report.model_copy(update={"results": results, "baseline": comparison})


def _key(result: Result) -> _Key:
    """Plug-ins that cannot be loaded share a code and differ by their names."""
    return result.code, result.name


def _is_finding(result: Result | None) -> bool:
    return (
        result is not None
        and not result.suppressed
        and (result.status in SEVERITY or result.status is Status.ERROR)
    )


def _changed(result: Result, old: Result | None) -> Result:
    update = {"change": _change(result, old), "before": old.status if old else None}
    return result.model_copy(update=update)


def _change(result: Result, old: Result | None) -> Change | None:
    if result.suppressed:
        return None
    if not _is_finding(result):
        if not _is_finding(old):
            return None
        return Change.FIXED if result.status is Status.PASS else Change.UNJUDGED
    if old is None or not _is_finding(old) or not _same_fault(result, old):
        return Change.NEW
    if result.status is old.status:
        return Change.UNCHANGED
    now, then = SEVERITY.index(result.status), SEVERITY.index(old.status)
    return Change.WORSE if now > then else Change.MILDER


def _same_fault(result: Result, old: Result) -> bool:
    """Whether the baseline told of every module that a finding is about.

    The first module that is named is another one where the first of two was mended: no news.
    """
    if (result.status is Status.ERROR) != (old.status is Status.ERROR):
        return False
    now = {result.module, *result.modules} - {""}
    return all(module in old.modules or module in _told(old) for module in now)


def _told(result: Result) -> str:
    evidence = " ".join(item.model_dump_json() for item in result.evidence if item.type != "images")
    return f"{result.module} {result.message} {evidence}"


def _unasked(report: Report, old: Report) -> tuple[str, ...]:
    asked = {_key(result) for result in report.results}
    return tuple(
        f"{result.code} {result.name}"
        for result in old.results
        if _is_finding(result) and _key(result) not in asked
    )


def _machine(report: Report) -> tuple[str, ...]:
    here = report.environment
    return here.platform, here.device, here.device_name, str(here.threads)


def _remark(report: Report, old: Report) -> str:
    if _machine(report) != _machine(old):
        return "It was created on another machine, so times are not compared."
    return ""


def _slower(report: Report, old: Report) -> tuple[Slower, ...]:
    if _machine(report) != _machine(old):
        return ()
    before = {_key(result): result for result in old.results}
    pairs = [
        (f"{result.code} {result.name}", before[_key(result)].seconds, result.seconds)
        for result in report.results
        if _key(result) in before and _judged(result) == _judged(before[_key(result)])
    ]
    if before.keys() == {_key(result) for result in report.results}:
        pairs.insert(0, ("the whole audit", old.totals.seconds, report.totals.seconds))
    return tuple(
        Slower(name=name, before=then, now=now)
        for name, then, now in pairs
        if now > TIMES * then and now > then + SECONDS
    )


def _judged(result: Result) -> bool:
    """Whether there was something to spend time on: a question that is skipped costs none."""
    return result.status in (*SEVERITY, Status.PASS)


def _moved(report: Report, old: Report) -> tuple[Moved, ...]:
    alike = _machine(report) == _machine(old)
    before = {name: (value, noise) for name, value, noise in _noisy(old) if alike or _lasts(name)}
    return tuple(
        Moved(name=name, before=before[name][0], before_noise=before[name][1], now=now, now_noise=s)
        for name, now, s in _noisy(report)
        if name in before and _apart(*before[name], now, s)
    )


def _lasts(name: str) -> bool:
    """Whether a number says the same on another machine: not what was measured by the clock."""
    return not name.startswith("PERF")


def _noisy(report: Report) -> Iterator[tuple[str, float, float]]:
    """Yield the numbers of a report whose noise is known, each with a name of its own."""
    for result in report.results:
        for item in result.evidence:
            if not isinstance(item, Numbers):
                continue
            for name, noise in item.noise.items():
                value = item.values.get(name)
                if isinstance(value, float | int):
                    yield f"{result.code} {result.name}: {name}", value, noise


def _apart(before: float, then: float, now: float, noise: float) -> bool:
    return abs(now - before) > ERRORS * math.hypot(then, noise)
