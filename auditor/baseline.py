"""Compares reports with earlier ones, so that a build can fail for what is new alone.

Must not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath

from nnaudit.report import Change, Comparison, Report, Result, Slower, Status

#: Findings from mild to grave. A crash is no answer, so it has no place among them.
SEVERITY = (Status.NOTE, Status.WARN, Status.FAIL)

TIMES, SECONDS = 2.0, 2.0
"""What took more than twice as long, and two seconds more, is slower: on a machine that others
use, too, the same check was seen to take up to twice its time. It is told and never fails."""

_Key = tuple[str, str]


def compare(reports: Iterable[Report], baseline: Sequence[Report], file: str) -> list[Report]:
    """Return ``reports`` with what changed since ``baseline``, which was read from ``file``.

    A target of which the baseline holds no report is compared with nothing: all its findings are
    new.
    """
    return [_compare(report, _counterpart(report, baseline), file) for report in reports]


def _counterpart(report: Report, baseline: Sequence[Report]) -> Report | None:
    """Find the report of the same target: by its path, else by a name that only one has."""
    for same in (_path, _name):
        found = [old for old in baseline if same(old) == same(report)]
        if len(found) == 1:
            return found[0]
    return None


def _path(report: Report) -> str:
    return PurePath(report.target.path).as_posix()


def _name(report: Report) -> str:
    return report.target.name


def _compare(report: Report, old: Report | None, file: str) -> Report:
    before = {_key(result): result for result in old.results} if old else {}
    results = tuple(_changed(result, before.get(_key(result))) for result in report.results)
    if old is None:
        comparison = Comparison(
            file=file, remark="It holds no report of this target, so every finding counts as new."
        )
    else:
        comparison = Comparison(
            file=file,
            created=old.tool.created,
            version=old.tool.version,
            unasked=_unasked(report, old),
            slower=_slower(report, old),
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
        return "It was made on another machine, so times are not compared."
    return ""


def _slower(report: Report, old: Report) -> tuple[Slower, ...]:
    if _machine(report) != _machine(old):
        return ()
    before = {_key(result): result.seconds for result in old.results}
    pairs = [
        (f"{result.code} {result.name}", before[_key(result)], result.seconds)
        for result in report.results
        if _key(result) in before
    ]
    if before.keys() == {_key(result) for result in report.results}:
        pairs.insert(0, ("the whole audit", old.totals.seconds, report.totals.seconds))
    return tuple(
        Slower(name=name, before=then, now=now)
        for name, then, now in pairs
        if now > TIMES * then and now > then + SECONDS
    )
