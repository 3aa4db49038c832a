"""Markdown for a comment on a pull request, or for a job's summary.

GitHub refuses a comment of more than 65,536 characters, so the report is made of blocks, and the
least important are left out first. Text of the audited program is escaped so that it is nothing
but text: no markup, no mention of a person, no reference to an issue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from nnaudit.report import (
    Curve,
    Evidence,
    Histogram,
    Images,
    Numbers,
    Report,
    Result,
    Status,
    Table,
    Text,
)
from nnaudit.reports import inline, outline
from nnaudit.reports.base import Options
from nnaudit.reports.issues import facts
from nnaudit.reports.outline import SEVERITY, Finding, title
from nnaudit.reports.text import format_cell, format_seconds, one_line, shorten, visible
from nnaudit.wording import count

#: By this a bot finds the comment that it wrote before, to replace it.
MARKER = "<!-- nnaudit report -->"

#: Bytes in UTF-8, which no measure of the length exceeds.
LIMIT = 65_000

#: Characters of an address that stay as they are; the others, such as |, would end it.
_SAFE = ":/?#@!&'()*+,;=%"

_CELL = 400
_TEXT = 3_000
_ROWS = 12
_CURVES = 6

_ICONS = dict(zip(SEVERITY, ("❌", "💥", "⚠️", "ℹ️", "❔", "➖", "✅"), strict=True))

_CODE = re.compile(r"`([^`\n]+)`")
_ESCAPES = {
    **{character: f"\\{character}" for character in "\\`*_[]|~"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "$": "&#36;",
}
_TABLE = str.maketrans(_ESCAPES)
#: A zero-width space between a sign and a word: GitHub and GitLab would make it a link.
_REFERENCE = re.compile(r"([@#!])(?=\w)")


@dataclass(frozen=True, slots=True)
class _Block:
    """A piece of the report; of two, the one with the higher ``rank`` is left out first."""

    rank: int
    text: str


def render(reports: Sequence[Report], options: Options) -> str:
    """Return the marker, then for each target its verdict, its findings, and what is folded."""
    blocks = [_Block(0, MARKER)]
    if len(reports) != 1:
        blocks.append(_Block(0, f"\n## nnaudit: {outline.verdict_of_all(reports).headline}"))
    for report in reports:
        blocks += _report(report)
    return _assemble(blocks)


def _assemble(blocks: Sequence[_Block]) -> str:
    """Join the blocks, without the least important of those that are too many."""
    left = LIMIT
    kept = set()
    for index in sorted(range(len(blocks)), key=lambda i: blocks[i].rank):
        size = len(blocks[index].text.encode()) + 1
        if size <= left:
            left -= size
            kept.add(index)
    lines = [block.text for index, block in enumerate(blocks) if index in kept]
    if missing := len(blocks) - len(kept):
        lines.append(
            f"\n{count(missing, 'part')} left out to keep this short: see the HTML report."
        )
    return "\n".join(lines) + "\n"


def _report(report: Report) -> Iterator[_Block]:
    verdict = outline.verdict(report)
    name = code(report.target.label)
    yield _Block(0, f"\n### {_ICONS[verdict.status]} {prose(verdict.headline)}: {name}")
    if since := outline.since(report):
        lines = "<br>\n".join(f"**{item.label}**: {prose(item.text, 1000)}" for item in since)
        yield _Block(1, f"\n{lines}")
    if others := report.target.other_loops:
        yield _Block(1, f"\n**not audited**: {prose(others, 1000)}")
    findings = outline.ordered(report)
    if findings:
        yield _Block(1, "\n| | Check | What was found | Where |\n|---|---|---|---|")
    for position, finding in enumerate(findings):
        yield _Block(2 + position, _row(finding))
    yield _Block(1, "")
    for position, finding in enumerate(findings):
        if details := _details(finding):
            yield _Block(1_000 + position, details)
    yield from _rest(report)


def _row(finding: Finding) -> str:
    result = finding.result
    what = prose(result.message, _CELL)
    if result.fix:
        what += f"<br>**Fix:** {prose(result.fix, _CELL)}"
    if finding.consequences:
        names = ", ".join(prose(title(other), 60) for other in finding.consequences)
        what += f"<br>**Leads to:** {names}"
    if result.change:
        what += f"<br>*{outline.CHANGES[result.change]}*"
    location = result.location
    where = code(f"{location.file}:{location.line}") if location else code(result.module)
    label = f"{_linked(result)}<br>{prose(result.name, 60)}"
    icon = f"{_ICONS[result.status]} {outline.LABELS[result.status]}"
    return f"| {icon} | {label} | {what} | {where} |"


def _linked(result: Result) -> str:
    """Return the code, a link where the check's documentation has an address."""
    shown = f"**{prose(result.code, 60)}**"
    address = outline.link(result)
    return f"[{shown}](<{quote(address, safe=_SAFE)}>)" if address else shown


def _details(finding: Finding) -> str:
    """Return what the table leaves out; nothing where it says all."""
    result = finding.result
    parts = [_head(result), _source(result), *_evidence(result)]
    for other in finding.told:
        parts.append(f"Leads to **{prose(title(other), 60)}**: {prose(other.message)}")
        parts += [_head(other), *_evidence(other)]
    parts = [part for part in parts if part]
    question = [f"*{prose(result.question)}*"] if result.question else []
    return _folded(f"Details of {prose(title(result), 120)}", [*question, *parts]) if parts else ""


def _folded(summary: str, parts: Sequence[str]) -> str:
    body = "\n\n".join(parts)
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _head(result: Result) -> str:
    labels = ("measured", "threshold", "module", "crash")
    lines = [f"- {label}: {prose(text)}" for label, text in facts(result) if label in labels]
    return "\n".join(lines)


def _source(result: Result) -> str:
    """Return the lines of source around a finding's place; the line itself is marked."""
    lines = outline.quoted(result)
    if not lines or result.location is None:
        return ""
    digits = len(str(lines[-1].number))
    text = "\n".join(
        f"{'>' if line.marked else ' '} {line.number:{digits}} | {visible(line.text)}"
        for line in lines
    )
    return _fenced(f"{result.location.file}:{result.location.line}", text)


def _evidence(result: Result) -> list[str]:
    return [_fenced(item.title, body) for item in result.evidence if (body := _drawn(item))]


def _drawn(evidence: Evidence) -> str:
    """Return evidence as lines of text; pictures have none."""
    match evidence:
        case Curve():
            return _columns(inline.curve_rows(evidence, inline.UNICODE, shown=_CURVES))
        case Histogram():
            return inline.histogram_row(evidence, inline.UNICODE)
        case Numbers():
            rows = inline.number_rows(evidence)[:_ROWS]
            return _columns([(_cell(name), _cell(value)) for name, value in rows])
        case Table():
            return _table(evidence)
        case Text():
            return _tail(evidence.text)
        case Images():
            return ""


def _table(table: Table) -> str:
    rows = [tuple(_cell(value) for value in row) for row in (table.columns, *table.rows[:_ROWS])]
    more = len(table.rows) - _ROWS
    return _columns(rows) + (f"\n... {count(more, 'more row')}" if more > 0 else "")


def _cell(value: float | str) -> str:
    return one_line(format_cell(value), limit=60)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    number = max((len(row) for row in rows), default=0)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(number)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _tail(text: str) -> str:
    """Return the end of a long text: a traceback says there what went wrong."""
    shown = visible(text, limit=len(text))
    return shown if len(shown) <= _TEXT else f"...{shown[-_TEXT:]}"


def _fenced(heading: str, text: str) -> str:
    """Return text between fences longer than any row of back-ticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{prose(heading, 120)}\n{fence}text\n{text}\n{fence}"


def _rest(report: Report) -> Iterator[_Block]:
    if hidden := report.suppressed:
        lines = [f"- {_named(result)}: {prose(result.suppressed, _CELL)}" for result in hidden]
        yield _Block(10_000, _folded(f"{count(len(hidden), 'suppressed finding')}", lines))
    for status, word in ((Status.INCONCLUSIVE, "inconclusive"), (Status.SKIP, "skipped")):
        if number := len(report.with_status(status)):
            lines = [
                f"- {', '.join(prose(title(r), 60) for r in reason.results)}: "
                f"{prose(reason.text, _CELL)}"
                for reason in outline.reasons(report, status)
            ]
            yield _Block(10_001, _folded(f"{number} {word}", ["\n".join(lines)]))
    if passed := report.with_status(Status.PASS):
        names = ", ".join(prose(title(result), 60) for result in passed)
        yield _Block(10_002, _folded(f"{len(passed)} passed", [names]))
    yield _Block(10_003, _folded("Environment and command", [_environment(report)]))


def _named(result: Result) -> str:
    return f"{prose(title(result), 60)} ({outline.LABELS[result.status].lower()})"


def _environment(report: Report) -> str:
    cost = f"{count(report.totals.steps, 'step')} in {format_seconds(report.totals.seconds)}"
    values = [("nnaudit", report.tool.version), ("cost", cost), ("created", report.tool.created)]
    values += [(name, str(v)) for name, v in report.environment.model_dump().items() if v]
    lines = [
        f"- {name.replace('_', ' ')}: {prose(value, _CELL)}" for name, value in values if value
    ]
    command = _fenced("To reproduce:", shorten(visible(report.tool.command), _TEXT))
    return "\n".join(lines) + (f"\n\n{command}" if report.tool.command else "")


def prose(text: str, limit: int = _TEXT) -> str:
    """Return ``text`` on one line, as Markdown that shows it; what is in back-ticks is code."""
    pieces = _CODE.split(one_line(text, limit=limit))
    return "".join(
        code(piece) if position % 2 else _escape(piece) for position, piece in enumerate(pieces)
    )


def code(text: str) -> str:
    """Return ``text`` as inline code; nothing for nothing."""
    shown = one_line(text, limit=_CELL).translate(_TABLE)
    return f"<code>{shown}</code>" if shown else ""


def _escape(text: str) -> str:
    return _REFERENCE.sub("\\1\u200b", text).translate(_TABLE)
