"""The report in a terminal, for a person who has a minute to decide what to do.

Glyphs and words carry the meaning, colour only repeats it. Text of the audited program is never
interpreted: no markup, no escape codes, and no character that the stream cannot encode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.style import Style
from rich.text import Text as Line

from nnaudit.report import (
    Curve,
    Evidence,
    Histogram,
    Images,
    Numbers,
    Part,
    Report,
    Result,
    Status,
    Table,
    Text,
)
from nnaudit.reports import inline, outline
from nnaudit.reports.base import Options, Verbosity
from nnaudit.reports.inline import Ink
from nnaudit.reports.outline import Finding, title
from nnaudit.reports.text import (
    PHRASE_LIMIT,
    TEXT_LIMIT,
    format_cell,
    format_seconds,
    one_line,
    visible,
)
from nnaudit.wording import count

# Longer lines are hard to read, so a wide terminal keeps a margin.
_WIDEST = 120
_LABEL = 11
_WIDE_LABEL = 16
_CURVES = 3
_ROWS = 20
_TAIL = 6

_STYLES = {
    Status.FAIL: "bold red",
    Status.ERROR: "bold magenta",
    Status.WARN: "bold yellow",
    Status.NOTE: "bold cyan",
    Status.INCONCLUSIVE: "bold blue",
    Status.SKIP: "dim",
    Status.PASS: "bold green",
}

_WORDS = {
    Status.FAIL: "FAIL",
    Status.ERROR: "CRASHED",
    Status.WARN: "WARNING",
    Status.NOTE: "NOTE",
    Status.INCONCLUSIVE: "INCONCLUSIVE",
    Status.SKIP: "SKIPPED",
    Status.PASS: "PASS",
}


@dataclass(frozen=True, slots=True)
class _Glyphs:
    status: dict[Status, str]
    ink: Ink

    def encodable(self, encoding: str) -> bool:
        every = "".join([*self.status.values(), self.ink.ramp, self.ink.gap, self.ink.arrow])
        return _encoded(every, encoding) == every


_UNICODE = _Glyphs(dict(zip(outline.SEVERITY, "✗!▲i?–✓", strict=True)), inline.UNICODE)
_ASCII = _Glyphs(dict(zip(outline.SEVERITY, "x!*i?-+", strict=True)), inline.ASCII)


def render(reports: Sequence[Report], options: Options) -> str:
    """Return the reports as text, one after another, then the verdict on all of them."""
    page = _Page(options)
    for report in reports:
        page.report(report)
    if len(reports) != 1:
        page.verdict(outline.verdict_of_all(reports))
    return page.text()


def render_changes(reports: Sequence[Report], options: Options) -> str:
    """Return what each report says of the comparison with its baseline, and what is new in full."""
    page = _Page(options)
    for report in reports:
        page.head(report)
        for finding in outline.ordered(report):
            if finding.result.is_new:
                page.finding(finding)
        page.blank()
    return page.text()


def _encoded(text: str, encoding: str) -> str:
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        return text.encode("ascii", "backslashreplace").decode("ascii")


class _Page:
    """Collects lines. Every string passes through :meth:`safe` on its way in."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.width = max(20, min(options.width, _WIDEST))
        self.glyphs = _UNICODE if _UNICODE.encodable(options.encoding) else _ASCII
        self.stream = StringIO()
        # Everything is stated, so that the environment cannot change what a report looks like.
        self.console = Console(
            file=self.stream,
            width=self.width,
            color_system="standard" if options.color else None,
            force_terminal=options.color,
            no_color=not options.color,
            force_jupyter=False,
            legacy_windows=False,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def text(self) -> str:
        lines = [line.rstrip() for line in self.stream.getvalue().split("\n")]
        return "\n".join(lines).strip("\n") + "\n"

    def safe(self, text: str, limit: int = PHRASE_LIMIT) -> str:
        return _encoded(visible(text, limit), self.options.encoding)

    # Building blocks ---------------------------------------------------------------------

    def blank(self) -> None:
        self.console.print()

    def hang(self, head: Line | str, body: Line | str, indent: int, hanging: int) -> None:
        """Print ``body`` beside ``head``; its further lines start at column ``hanging``."""
        head = Line(head) if isinstance(head, str) else head
        body = Line(self.safe(body)) if isinstance(body, str) else body
        first = Line(" " * indent).append_text(head)
        if first.cell_len >= hanging and head.plain:  # the head is too long to share its line
            self.lines(head, Line(" " * indent), indent)
            first = Line()
        first.append(" " * (hanging - first.cell_len))
        self.lines(body, first, hanging)

    def lines(self, text: Line, first: Line, indent: int) -> None:
        """Print ``text`` folded to the width, after ``first`` and then indented."""
        for part in text.wrap(self.console, self.width - indent, overflow="fold") or [Line()]:
            self.console.print(first + part, no_wrap=True, overflow="ignore", crop=False)
            first = Line(" " * indent)

    def field(self, label: str, body: Line | str, width: int = _LABEL) -> None:
        """Print one labelled line, if there is anything to say."""
        if body:
            self.hang(Line(self.safe(label), style="dim"), body, 2, 2 + width)

    def heading(self, text: str) -> None:
        self.blank()
        self.hang("", Line(self.safe(text), style="bold"), 0, 0)

    # A report ----------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        verbosity = self.options.verbosity
        self.head(report)
        self.field("not audited", one_line(report.target.other_loops), _WIDE_LABEL)
        for status in outline.FINDINGS:
            if verbosity is not Verbosity.QUIET or status in (Status.FAIL, Status.ERROR):
                for finding in outline.findings(report, status):
                    self.finding(finding)
        if verbosity is Verbosity.QUIET:
            self.blank()
            return
        if verbosity is Verbosity.VERBOSE:
            self.details(report)
        self.accounted(report)
        self.totals(report)
        self.blank()

    def head(self, report: Report) -> None:
        """Print the verdict, and what changed since the baseline where there is one."""
        self.verdict(outline.verdict(report), one_line(report.target.label))
        for item in outline.since(report):
            self.field(item.label, one_line(item.text), _WIDE_LABEL)

    def verdict(self, verdict: outline.Verdict, target: str = "") -> None:
        style = _STYLES[verdict.status]
        head = Line(self.glyphs.status[verdict.status], style=style)
        sentence = Line(f"{self.safe(target)}: " if target else "", style="bold")
        self.hang(head, sentence.append(f"{verdict.headline}.", style=style), 0, 2)

    def finding(self, finding: Finding) -> None:
        result = finding.result
        self.blank()
        self.result_title(result)
        self.result_body(result)
        for position, consequence in enumerate(finding.told):
            line = f"{title(consequence)}: {one_line(consequence.message)}"
            self.field("leads to" if position == 0 else "", line)
        if finding.alike:
            self.field("same for", one_line(finding.alike))
        if self.options.verbosity is Verbosity.VERBOSE:
            for consequence in finding.told:
                self.blank()
                self.result_title(consequence)
                self.result_body(consequence)

    def result_title(self, result: Result) -> None:
        status = result.status
        head = Line(f"{self.glyphs.status[status]} {_WORDS[status]}", style=_STYLES[status])
        name = Line(self.safe(one_line(title(result))), style="bold")
        if address := outline.link(result):
            name.stylize(Style(link=address), 0, cell_len(self.safe(one_line(result.code))))
        if result.change:
            name.append(f" ({outline.CHANGES[result.change]})", style="dim")
        self.hang(head, name, 0, head.cell_len + 1)

    def result_body(self, result: Result) -> None:
        verbose = self.options.verbosity is Verbosity.VERBOSE
        if verbose and result.question:
            self.hang("", Line(self.safe(result.question), style="italic"), 2, 2)
        self.hang("", result.message, 2, 2)
        self.field("measured", result.measured)
        self.field("threshold", result.threshold)
        self.field("where", _where(result))
        self.source(result)
        self.field("crash", outline.CRASHES[result.crash])
        self.field("fix", Line(self.safe(result.fix), style="green"))
        if result.cause:
            self.field("caused by", result.cause)
        if verbose:
            self.field("kind", f"{result.kind.value}, {_cost(result.steps, result.seconds)}")
        for evidence in result.evidence:
            self.evidence(evidence, result.status)

    def source(self, result: Result) -> None:
        """Print the line that a finding is about, underlined, with the lines around it.

        A line that is too long is cut: folded, it would not look like the source.
        """
        lines = outline.quoted(result)
        digits = len(str(lines[-1].number)) if lines else 0
        for line in lines:
            number = Line(f"{line.number:{digits}} |", style="dim")
            text = self.cut(self.safe(line.text), self.width - 7 - digits)
            self.hang(number, Line(text, style="bold" if line.marked else ""), 4, 7 + digits)
            if line.marked and (shown := text.strip()):
                below = " " * (len(text) - len(text.lstrip())) + "^" * cell_len(shown)
                caret = Line(below, style=_STYLES[result.status])
                self.hang(Line(" " * digits + " |", style="dim"), caret, 4, 7 + digits)

    def cut(self, text: str, width: int) -> str:
        """Return ``text`` in at most ``width`` columns; dots stand for what is missing."""
        if cell_len(text) <= width:
            return text
        return set_cell_size(text, max(0, width - 3)).rstrip() + "..."

    # Evidence ----------------------------------------------------------------------------

    def evidence(self, evidence: Evidence, status: Status) -> None:
        verbose = self.options.verbosity is Verbosity.VERBOSE
        if isinstance(evidence, Curve):
            self.curve(evidence)
        elif isinstance(evidence, Text) and status is Status.ERROR and not verbose:
            self.verbatim(evidence.title, evidence.text, tail=_TAIL)
        elif verbose:
            self.picture(evidence)

    def picture(self, evidence: Histogram | Images | Numbers | Table | Text) -> None:
        if isinstance(evidence, Histogram):
            self.histogram(evidence)
        elif isinstance(evidence, Images):
            self.images(evidence)
        elif isinstance(evidence, Numbers):
            rows = tuple(inline.number_rows(evidence))
            self.table(Table(title=evidence.title, columns=(), rows=rows))
        elif isinstance(evidence, Table):
            self.table(evidence)
        else:
            self.verbatim(evidence.title, evidence.text, tail=None)

    def curve(self, curve: Curve) -> None:
        self.subtitle(curve.title)
        verbose = self.options.verbosity is Verbosity.VERBOSE
        shown = len(curve.series) if verbose else _CURVES
        rows = inline.curve_rows(curve, self.glyphs.ink, shown=shown, extremes=verbose)
        names = [self.safe(name) for name, _ in rows]
        width = 6 + min(24, max(map(cell_len, names), default=0))
        for name, (_, text) in zip(names, rows, strict=True):
            self.hang(Line(name, style="dim"), Line(self.safe(text)), 4, width)

    def histogram(self, histogram: Histogram) -> None:
        self.subtitle(histogram.title)
        self.hang("", inline.histogram_row(histogram, self.glyphs.ink), 4, 4)

    def images(self, images: Images) -> None:
        self.subtitle(images.title)
        captions = ", ".join(one_line(image.caption) for image in images.images[:_ROWS])
        number = count(len(images.images), "image")
        self.hang("", f"{number}, shown in the HTML report: {captions}", 4, 4)

    def subtitle(self, text: str, remark: str = "") -> None:
        self.hang("", Line(self.safe(one_line(text)) + remark, style="dim"), 2, 2)

    def table(self, table: Table) -> None:
        rows = [[self.cell(cell) for cell in row] for row in table.rows[:_ROWS]]
        head = [self.cell(column) for column in table.columns]
        self.subtitle(table.title)
        every = [head, *rows] if head else rows
        columns = max((len(row) for row in every), default=0)
        widths = [max(cell_len(row[i]) for row in every if i < len(row)) for i in range(columns)]
        for row in every:
            padded = [set_cell_size(cell, width) for cell, width in zip(row, widths, strict=False)]
            style = "bold" if row is head else ""
            self.hang("", Line("  ".join(padded).rstrip(), style=style), 4, 4)
        if len(table.rows) > _ROWS:
            self.hang(
                "", f"... {count(len(table.rows) - _ROWS, 'more row')} in the JSON report", 4, 4
            )

    def cell(self, value: float | str) -> str:
        return self.safe(one_line(format_cell(value), limit=60))

    def verbatim(self, heading: str, text: str, *, tail: int | None) -> None:
        lines = visible(text, TEXT_LIMIT).rstrip("\n").split("\n")
        shown = lines if tail is None else lines[-tail:]
        cut = f" (last {len(shown)} of {len(lines)} lines)" if len(shown) < len(lines) else ""
        self.subtitle(heading, cut)
        for line in shown:
            self.hang("", Line(self.safe(line, TEXT_LIMIT)), 4, 4)

    # The rest ----------------------------------------------------------------------------

    def details(self, report: Report) -> None:
        """Print what only ``-v`` shows: what was judged without a finding, pictures, target."""
        for status in (Status.INCONCLUSIVE, Status.PASS):
            for finding in outline.findings(report, status):
                self.finding(finding)
        for section in report.overview.sections:
            self.heading(one_line(section.title))
            if section.text:
                self.hang("", section.text, 2, 2)
            for evidence in section.evidence:
                self.evidence(evidence, Status.NOTE)
        self.heading("What was audited")
        for part in report.target.parts:
            self.part(part)
        self.environment(report)

    def part(self, part: Part) -> None:
        line = f"{one_line(part.description)} (from {_ORIGINS[part.origin]})"
        if part.origin == "absent":
            line = one_line(part.description) or "absent"
        if part.disables:
            line += f"; disables {', '.join(part.disables)}"
        self.field(one_line(part.name), line, _WIDE_LABEL)

    def environment(self, report: Report) -> None:
        self.heading("Environment")
        for name, value in report.environment.model_dump().items():
            self.field(name.replace("_", " "), str(value) if value else "", _WIDE_LABEL)
        self.field("created", report.tool.created, _WIDE_LABEL)
        self.field("command", report.tool.command, _WIDE_LABEL)

    def accounted(self, report: Report) -> None:
        """Account for the results that ask nothing of the reader, in a few lines."""
        self.blank()
        if passed := report.with_status(Status.PASS):
            self.group(Status.PASS, len(passed), "passed", [outline.compact(passed)])
        if unsure := report.with_status(Status.INCONCLUSIVE):
            lines = [_reason(reason) for reason in outline.reasons(report, Status.INCONCLUSIVE)]
            self.group(Status.INCONCLUSIVE, len(unsure), "inconclusive", lines)
        if skipped := report.with_status(Status.SKIP):
            self.group(Status.SKIP, len(skipped), "skipped", self.skips(report))
        if hidden := report.suppressed:
            self.group(Status.SKIP, len(hidden), "suppressed", [_hidden(r) for r in hidden])

    def skips(self, report: Report) -> list[str]:
        """Return a line for each reason that several checks share, and one for all the others."""
        reasons = outline.reasons(report, Status.SKIP)
        alone = [reason for reason in reasons if len(reason.results) == 1]
        if self.options.verbosity is Verbosity.VERBOSE or len(alone) == 1:
            return [_reason(reason) for reason in reasons]
        lines = [_reason(reason) for reason in reasons if len(reason.results) > 1]
        if alone:
            codes = outline.compact([reason.results[0] for reason in alone])
            lines.append(f"{codes}: do not apply (-v shows why)")
        return lines

    def group(self, status: Status, number: int, word: str, lines: Sequence[str]) -> None:
        head = Line(f"{self.glyphs.status[status]} {number} {word}", style=_STYLES[status])
        for line in lines:
            self.hang(head, line, 0, 18)
            head = Line(" ")

    def totals(self, report: Report) -> None:
        numbers = ", ".join(
            f"{number} {outline.tallied(status, number)}"
            for status, number in outline.counts(report).items()
        )
        if hidden := len(report.suppressed):
            numbers += f", {hidden} suppressed"
        checks = count(len(report.results), "check")
        cost = _cost(report.totals.steps, report.totals.seconds)
        device = f" on {one_line(report.environment.device)}" if report.environment.device else ""
        seed = f"seed {report.tool.seed}, preset {one_line(report.tool.preset)}"
        families = ", ".join(f"{s.family} {s.passed}/{s.answered}" for s in outline.scores(report))
        self.blank()
        if families:
            self.hang("", Line(self.safe(f"Passed by family: {families}."), style="dim"), 0, 0)
        for text in (f"{checks}: {numbers or 'none'}.", f"{cost}{device}, {seed}."):
            self.hang("", Line(self.safe(text), style="dim"), 0, 0)
        if first := outline.ordered(report)[:1]:
            code = one_line(first[0].result.code)
            text = f"`nnaudit rule {code}` explains a check: why it asks, how it decides, the fix."
            self.hang("", Line(self.safe(text), style="dim"), 0, 0)


_ORIGINS = {"user": "you", "default": "nnaudit's defaults", "absent": "nowhere"}


def _reason(reason: outline.Reason) -> str:
    names = ", ".join(one_line(title(result)) for result in reason.results)
    return f"{names}: {one_line(reason.text)}"


def _hidden(result: Result) -> str:
    label = outline.LABELS[result.status].lower()
    return f"{one_line(title(result))} ({label}): {one_line(result.suppressed)}"


def _where(result: Result) -> str:
    places: Iterable[str] = (
        f"{one_line(result.location.file)}:{result.location.line}" if result.location else "",
        f"module {one_line(result.module)}" if result.module else "",
    )
    return ", ".join(place for place in places if place)


def _cost(steps: int, seconds: float) -> str:
    return f"{count(steps, 'step') if steps else 'no steps'} in {format_seconds(seconds)}"
