"""Lays out the pictures of a report: what a template draws, already in coordinates.

A view holds geometry and words. The words are the user's and not yet escaped; paths are ours and
hold nothing but letters and digits.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nnaudit.report import Curve, Histogram, Image, Series
from nnaudit.reports.geometry import (
    Axis,
    Point,
    Tick,
    axis,
    bars,
    coordinate,
    dots,
    downsample,
    drawable,
    path,
    spread,
)
from nnaudit.reports.text import format_number, one_line
from nnaudit.wording import count

# Small enough to be legible on a phone, where a chart is shrunk to 300 pixels or less.
WIDTH = 400
HEIGHT = 230
_TOP = 12
_RIGHT = 14
_BOTTOM = 44
_CHARACTER = 6.9
_LABEL_GAP = 15
_COLORS = 8

#: So that lines can be told apart without their colours.
_DASHES = ("", "7 3", "2 3", "9 3 2 3")

_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER = 24


@dataclass(frozen=True, slots=True)
class Stroke:
    """One line of a chart, or the bars of one series; ``color`` is an index into the palette."""

    name: str
    path: str
    dots: str
    color: int
    dash: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A threshold: a dashed horizontal line at ``y`` with its label's baseline at ``label_y``."""

    label: str
    y: str
    label_y: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The box inside the axes, and what is written along it.

    ``cut`` says that the heights do not begin at zero, which a picture must not hide.
    """

    left: str
    right: str
    top: str
    bottom: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str
    y_label: str
    cut: bool


@dataclass(frozen=True, slots=True)
class CurveView:
    """A curve ready to be drawn."""

    frame: Frame
    strokes: tuple[Stroke, ...]
    rules: tuple[Rule, ...]
    description: str
    missing: int


@dataclass(frozen=True, slots=True)
class HistogramView:
    """A histogram ready to be drawn."""

    frame: Frame
    bars: str
    description: str
    missing: int


@dataclass(frozen=True, slots=True)
class ImageView:
    """A picture whose bytes were seen to be a PNG, enlarged if it is only a few pixels wide."""

    data: str
    width: int
    height: int


def curve_view(curve: Curve) -> CurveView:
    """Lay out ``curve``; thresholds widen the y axis, so that they are always seen."""
    curve = _in_per_cent(curve) if curve.shares else curve
    limits = {n: y for n, y in curve.thresholds.items() if drawable(y, log=curve.log_y)}
    xs = [x for series in curve.series for x in series.x]
    ys = [y for series in curve.series for y in series.y]
    if curve.bars:  # from edge to edge, and from zero
        half = _bin_width(curve) / 2
        xs, ys = [*(v - half for v in xs), *(v + half for v in xs)], [0.0, *ys]
    x, y = _axes(xs, [*ys, *limits.values()], log_x=curve.log_x, log_y=curve.log_y)
    return CurveView(
        frame=_frame(x, y, curve.x_label, curve.y_label),
        strokes=_groups(curve, x, y)
        if curve.bars
        else tuple(_stroke(index, series, x, y) for index, series in enumerate(curve.series)),
        rules=_rules(limits, curve.series, x, y),
        description=_describe_curve(curve) + _cut_remark(y),
        missing=sum(
            not (drawable(a, log=x.log) and drawable(b, log=y.log))
            for series in curve.series
            for a, b in zip(series.x, series.y, strict=False)
        ),
    )


def _in_per_cent(curve: Curve) -> Curve:
    """Return the curve with its shares as numbers of per cents."""
    scaled = tuple(
        series.model_copy(update={"y": tuple(100 * y for y in series.y)}) for series in curve.series
    )
    limits = {name: 100 * y for name, y in curve.thresholds.items()}
    label = f"{curve.y_label} (%)"
    return curve.model_copy(update={"series": scaled, "thresholds": limits, "y_label": label})


def _bin_width(curve: Curve) -> float:
    """Return the distance between neighbouring middles of a curve that is drawn as bars."""
    xs = sorted({x for series in curve.series for x in series.x if drawable(x)})
    return min((b - a for a, b in pairwise(xs)), default=1.0)


def _groups(curve: Curve, x: Axis, y: Axis) -> tuple[Stroke, ...]:
    """Return the bars of each series; those of one bin stand beside each other."""
    width = _bin_width(curve)
    each = 0.9 * width / len(curve.series)
    strokes = []
    for index, series in enumerate(curve.series):
        left = index * each - 0.45 * width
        bins = [(middle + left, middle + left + each) for middle in series.x]
        drawn = bars(bins, series.y, x, y)
        strokes.append(Stroke(series.name, drawn, "", index % _COLORS, ""))
    return tuple(strokes)


def histogram_view(histogram: Histogram) -> HistogramView:
    """Lay out ``histogram``; its y axis always starts at zero."""
    x, y = _axes(histogram.edges, [0, 1, *histogram.counts])
    drawn = bars(pairwise(histogram.edges), histogram.counts, x, y)
    total = sum(histogram.counts)
    low, high = (format_number(v) for v in (x.low, x.high))
    text = f"{count(total, 'value')} from {low} to {high}"
    if total:
        peak = max(range(len(histogram.counts)), key=histogram.counts.__getitem__)
        edges = " to ".join(format_number(edge) for edge in histogram.edges[peak : peak + 2])
        text += f", most of them ({histogram.counts[peak]:,}) in the bin {edges}"
    return HistogramView(
        frame=_frame(x, y, histogram.x_label, "count"),
        bars=drawn,
        description=f"{text}.",
        missing=sum(
            number
            for (left, right), number in zip(
                pairwise(histogram.edges), histogram.counts, strict=False
            )
            if not (drawable(left) and drawable(right))
        ),
    )


def sparkline_path(curve: Curve, width: float, height: float) -> str:
    """Return the first line of ``curve`` as a path in a box without axes."""
    if not curve.series:
        return ""
    series = curve.series[0]
    x = axis(series.x, 2, width - 2, log=curve.log_x)
    y = axis(series.y, height - 2, 2, log=curve.log_y)
    return path(_points(series, x, y, limit=100))


def image_view(image: Image) -> ImageView | None:
    """Return what an HTML ``img`` needs, or ``None`` if the data are not a PNG."""
    try:
        content = base64.b64decode(image.png, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(content) < _HEADER or not content.startswith(_PNG):
        return None
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    if not (0 < width < 10_000 and 0 < height < 10_000):
        return None
    scale = max(1, math.ceil(96 / max(width, height)))
    return ImageView(image.png, width * scale, height * scale)


def _axes(
    xs: Sequence[float], ys: Sequence[float], *, log_x: bool = False, log_y: bool = False
) -> tuple[Axis, Axis]:
    y = axis(ys, HEIGHT - _BOTTOM, _TOP, log=log_y, rounded=True)
    # The left margin is as wide as the widest tick label, so that none is clipped.
    left = 30 + _CHARACTER * max((len(tick.label) for tick in y.ticks()), default=0)
    return axis(xs, left, WIDTH - _RIGHT, log=log_x), y


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Frame:
    return Frame(
        left=coordinate(x.start),
        right=coordinate(x.end),
        top=coordinate(y.end),
        bottom=coordinate(y.start),
        x_ticks=x.ticks(6),
        y_ticks=y.ticks(),
        x_label=_fit(x_label, 44),
        y_label=_fit(y_label, 26),
        cut=not y.log and (y.low > 0 or y.high < 0),
    )


def _fit(text: str, characters: int) -> str:
    line = one_line(text)
    return line if len(line) <= characters else f"{line[: characters - 3]}..."


def _stroke(index: int, series: Series, x: Axis, y: Axis) -> Stroke:
    # The second round through the palette starts one dash later, so no pair comes twice early.
    dash = _DASHES[(index + index // _COLORS) % len(_DASHES)]
    points = _points(series, x, y)
    return Stroke(series.name, path(points), dots(points), index % _COLORS, dash)


def _points(series: Series, x: Axis, y: Axis, limit: int = 500) -> list[Point]:
    placed = [(x.place(a), y.place(b)) for a, b in zip(series.x, series.y, strict=False)]
    return downsample([(a, b) for a, b in placed if a is not None], limit)


def _rules(
    limits: dict[str, float], series: Sequence[Series], x: Axis, y: Axis
) -> tuple[Rule, ...]:
    labels = [f"{_fit(name, 32)} {format_number(value)}" for name, value in limits.items()]
    places = [place for value in limits.values() if (place := y.place(value)) is not None]
    wanted = [
        _baseline(place, x.end - _CHARACTER * len(label), series, x, y)
        for place, label in zip(places, labels, strict=True)
    ]
    baselines = spread(wanted, _LABEL_GAP, _TOP + 10, y.start - 4)
    return tuple(
        Rule(label, coordinate(place), coordinate(at))
        for label, place, at in zip(labels, places, baselines, strict=True)
    )


def _baseline(place: float, left: float, series: Sequence[Series], x: Axis, y: Axis) -> float:
    """Put a label above its line, or below it where fewer points are in the way."""
    placed = ((x.place(a), y.place(b)) for s in series for a, b in zip(s.x, s.y, strict=False))
    heights = [b for a, b in placed if a is not None and b is not None and a >= left]
    above = sum(place - _LABEL_GAP - 2 < height < place for height in heights)
    below = sum(place < height < place + _LABEL_GAP + 2 for height in heights)
    return place + 13 if below < above else place - 5


def _describe_curve(curve: Curve) -> str:
    parts = [_describe_series(series) for series in curve.series[:_COLORS]]
    if len(curve.series) > _COLORS:
        parts.append(f"and {count(len(curve.series) - _COLORS, 'line')} more.")
    parts += [f"Threshold {one_line(n)}: {format_number(y)}." for n, y in curve.thresholds.items()]
    return " ".join([f"{one_line(curve.y_label)} over {one_line(curve.x_label)}.", *parts])


def _cut_remark(y: Axis) -> str:
    if y.log or y.low <= 0 <= y.high:
        return ""
    return f" The vertical axis is cut: it begins at {format_number(y.low)}."


def _describe_series(series: Series) -> str:
    points = list(zip(series.x, series.y, strict=False))
    finite = [y for _, y in points if math.isfinite(y)]
    if not finite:
        return f"{one_line(series.name)}: no finite value."
    (x0, y0), (x1, y1) = ((format_number(a), format_number(b)) for a, b in (points[0], points[-1]))
    extremes = f"lowest {format_number(min(finite))}, highest {format_number(max(finite))}"
    return f"{one_line(series.name)}: {y0} at {x0}, {y1} at {x1}, {extremes}."
