"""Curves and histograms as a line of text, for the terminal and for comments on a pull request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnaudit.report import Curve, Histogram, Numbers
from nnaudit.reports.geometry import levels
from nnaudit.reports.text import format_cell, format_noisy, format_number, one_line
from nnaudit.wording import count

WIDTH = 24


@dataclass(frozen=True, slots=True)
class Ink:
    """The characters a chart is drawn with: from low to high, no value, an arrow."""

    ramp: str
    gap: str
    arrow: str


UNICODE = Ink("▁▂▃▄▅▆▇█", "·", "→")
ASCII = Ink("_.:-=+*#", " ", "->")


def sparkline(
    values: Sequence[float],
    ink: Ink,
    *,
    log: bool = False,
    from_zero: bool = False,
    beside: Sequence[Sequence[float]] = (),
) -> str:
    """Draw ``values`` in at most ``WIDTH`` columns, on one scale with the lines ``beside``."""
    heights = levels(
        values, width=WIDTH, height=len(ink.ramp), log=log, from_zero=from_zero, beside=beside
    )
    return "".join(ink.gap if height is None else ink.ramp[height] for height in heights)


def span(values: Sequence[float], ink: Ink, *, extremes: bool = False, shares: bool = False) -> str:
    """Write the first and the last value, and on demand the lowest and the highest.

    Where the first is the last, they say nothing of what is between: the range does.
    """
    written = _per_cent if shares else format_number
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "no finite value"
    low, high = written(min(finite)), written(max(finite))
    ends = f"{written(values[0])} {ink.arrow} {written(values[-1])}"
    if extremes:
        return f"{ends}, lowest {low}, highest {high}"
    return f"{low} to {high}" if values[0] == values[-1] and low != high else ends


def _per_cent(share: float) -> str:
    return f"{format_number(round(100 * share, 1))}%" if math.isfinite(share) else "NaN"


def curve_rows(
    curve: Curve, ink: Ink, *, shown: int, extremes: bool = False
) -> list[tuple[str, str]]:
    """Return a labelled row for each of the first ``shown`` lines, then one for the limits."""
    rows = []
    drawn = [series.y for series in curve.series[:shown]]
    for series in curve.series[:shown]:
        line = sparkline(series.y, ink, log=curve.log_y, beside=drawn, from_zero=curve.bars)
        ends = span(series.y, ink, extremes=extremes, shares=curve.shares)
        rows.append((one_line(series.name, limit=60), f"{line}  {ends}"))
    if len(curve.series) > shown:
        rows.append(("", f"and {count(len(curve.series) - shown, 'curve')} more"))
    written = _per_cent if curve.shares else format_number
    limits = [f"{one_line(name)} {written(y)}" for name, y in curve.thresholds.items()]
    if limits:
        rows.append(("limits" if len(limits) > 1 else "limit", ", ".join(limits)))
    if curve.remark:
        rows.append(("", one_line(curve.remark)))
    return rows


def histogram_row(histogram: Histogram, ink: Ink) -> str:
    """Draw a histogram from zero and say what its edges are."""
    text = sparkline(histogram.counts, ink, from_zero=True)
    if histogram.edges:
        low, high = (format_number(histogram.edges[end]) for end in (0, -1))
        text += f"  {low} to {high} {one_line(histogram.x_label)}"
    return text


def number_rows(numbers: Numbers) -> list[tuple[str, str]]:
    """Return the name and the text of each quantity, with its noise where that is known."""
    return [
        (name, format_noisy(value, numbers.noise[name]))
        if name in numbers.noise and not isinstance(value, str)
        else (name, format_cell(value))
        for name, value in numbers.values.items()
    ]
