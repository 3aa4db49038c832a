"""The report as one HTML file: no script, no request to anywhere, under 2 MB.

All text is escaped by Jinja2, and hidden characters in it are made visible first, by one hook
through which every expression of every template passes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from nnaudit.report import Curve, Evidence, Report, Result, Status
from nnaudit.reports import charts, inline, outline, text
from nnaudit.reports.base import Options
from nnaudit.wording import count

#: Bytes of pictures, tables and texts in one file; what is over it is left to the JSON.
EVIDENCE_BUDGET = 1_500_000
#: Bytes of one file. Where phrases make it larger, they are cut shorter: nobody reads so much.
LIMIT = 2_000_000
MAX_ROWS = 200

#: What is written instead of evidence that is left out takes place, too.
_SLACK = 100_000

_PHRASES = (text.PHRASE_LIMIT, 300, 60)

_CELL_LIMIT = 300
_TAIL = 6
_CODE = re.compile(r"`([^`\n]+)`")


def render(reports: Sequence[Report], options: Options) -> str:
    """Return the reports as one page, with one section for each target."""
    shortest = ""
    for limit in _PHRASES:
        shortest = _page(reports, limit, EVIDENCE_BUDGET)
        if (excess := len(shortest) - LIMIT) > 0:
            shortest = _page(reports, limit, EVIDENCE_BUDGET - excess - _SLACK)
        if len(shortest) < LIMIT:
            break
    return shortest


def _page(reports: Sequence[Report], limit: int, budget: int) -> str:
    """Return the page with every phrase cut after ``limit`` characters.

    Pictures, tables and texts have ``budget`` bytes, the rest of them is left out.
    """
    environment = _environment(limit)
    html = environment.get_template("report.html.j2").render(
        reports=reports,
        verdict_of_all=outline.verdict_of_all(reports),
        anchor=_Anchors(),
        figure=_Figures(environment, budget),
    )
    # ASCII only: whatever encoding a console or a server puts on the file, it stays readable.
    return html.encode("ascii", "xmlcharrefreplace").decode("ascii") + "\n"


class _Anchors:
    """Gives every result an id of its own: its code, where that is still free."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._given: dict[int, str] = {}

    def __call__(self, result: Result) -> str:
        if id(result) not in self._given:
            self._given[id(result)] = self._free(result.code)
        return self._given[id(result)]

    def _free(self, code: str) -> str:
        base = re.sub(r"[^A-Za-z0-9]+", "-", code).strip("-")[:40] or "check"
        name, number = base, 2
        while name in self._taken:
            name, number = f"{base}-{number}", number + 1
        self._taken.add(name)
        return name


class _Figures:
    """Draws evidence until the file is as large as it may become. Failures come first."""

    def __init__(self, environment: Environment, budget: int) -> None:
        self._template: Any = environment.get_template("charts.svg.j2").module
        self._left = budget
        self._drawn = 0

    def __call__(self, evidence: Evidence) -> Markup:
        self._drawn += 1
        drawn: Markup = self._template.figure(evidence, f"figure-{self._drawn}")
        # Counted as it will be written: every character that is not ASCII becomes a reference.
        size = len(drawn.encode("ascii", "xmlcharrefreplace"))
        if size > self._left:
            left_out: Markup = self._template.left_out(evidence)
            return left_out
        self._left -= size
        return drawn


def _sparkline(result: Result) -> str:
    curve = next((e for e in result.evidence if isinstance(e, Curve)), None)
    return charts.sparkline_path(curve, 88, 20) if curve else ""


def _finalize(value: Any, limit: int) -> Any:
    """Make what an expression yields safe to read; markup was made by us and stays."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return text.visible(value, limit)
    return value


def _prose(value: str, limit: int) -> Markup:
    """Escape a sentence and set what stands between back-ticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text.visible(value, limit)))))


def _verbatim(value: str) -> Markup:
    return escape(text.visible(value, text.TEXT_LIMIT))


def _tail(value: str) -> Markup:
    """Return the end of a long text: a traceback says there what went wrong."""
    lines = text.visible(value, text.TEXT_LIMIT).rstrip("\n").split("\n")
    return escape("\n".join(lines[-_TAIL:]))


def _cell(value: float | str) -> str:
    return text.visible(text.format_cell(value), _CELL_LIMIT)


def _lines(value: str) -> int:
    return value.rstrip("\n").count("\n") + 1


@cache
def _environment(limit: int) -> Environment:
    environment = Environment(
        loader=PackageLoader("nnaudit.reports"),
        autoescape=True,
        finalize=partial(_finalize, limit=limit),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        cell=_cell,
        lines=_lines,
        number=text.format_number,
        paragraphs=text.paragraphs,
        prose=partial(_prose, limit=limit),
        seconds=text.format_seconds,
        tail=_tail,
        verbatim=_verbatim,
    )
    environment.globals.update(
        Status=Status,
        charts=charts,
        count=count,
        inline=inline,
        max_rows=MAX_ROWS,
        outline=outline,
        sparkline=_sparkline,
    )
    return environment
