"""Where numbers go in a picture: axes, ticks, paths. Pure arithmetic, no markup.

A value that is not finite has no place: it becomes ``None`` and leaves a gap. So do values
beyond 1e300, whose differences overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float | None]

NOTICEABLE = 0.1
"""The least part of its own size that fills the height of a chart of values.

A loss that goes from 0.6911 to 0.6904 must not look like a fall.
"""

_HUGE = 1e300
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled position on an axis."""

    position: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values in ``[low, high]`` to positions between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float | None:
        """Return the position of ``value``, or ``None`` where it has none."""
        if not drawable(value, log=self.log):
            return None
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, target: int = 5) -> tuple[Tick, ...]:
        """Return about ``target`` ticks at round values inside the axis."""
        values = _log_ticks(self.low, self.high, target) if self.log else []
        decades = len(values) >= 2
        if not decades:
            values = linear_ticks(self.low, self.high, target)
        labels = tick_labels(values, log=decades)
        placed = ((self.place(value), label) for value, label in zip(values, labels, strict=True))
        return tuple(Tick(position, label) for position, label in placed if position is not None)


def axis(
    values: Iterable[float], start: float, end: float, *, log: bool = False, rounded: bool = False
) -> Axis:
    """Return an axis over ``values``; a ``rounded`` one, of heights, ends at round values.

    A logarithmic axis without a positive value to show becomes linear. Heights that hardly differ
    are drawn as such.
    """
    every = list(values)
    shown = [value for value in every if drawable(value, log=log)]
    if log and not shown:
        return axis(every, start, end, rounded=rounded)
    low, high = _widened(min(shown, default=0.0), max(shown, default=1.0), log=log)
    if rounded and log:
        low, high = low / 1.25, high * 1.25
    elif rounded:
        low, high = _opened(low, high)
        step = _step(low, high, 5)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return Axis(low, high, start, end, log)


def drawable(value: float, *, log: bool = False) -> bool:
    """Tell whether ``value`` has a place on an axis."""
    return math.isfinite(value) and abs(value) <= _HUGE and (not log or value > _TINY)


def _widened(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """Open a range that is empty, or so narrow that its ticks could not be told apart."""
    size = max(abs(low), abs(high))
    if log:
        return (low / 10, high * 10) if high / low < 1 + 1e-9 else (low, high)
    if size < _TINY:
        return -1.0, 1.0
    return (low - size / 2, high + size / 2) if high - low < 1e-9 * size else (low, high)


def _opened(low: float, high: float) -> tuple[float, float]:
    """Open a range around its middle to the :data:`NOTICEABLE` part of its size."""
    missing = NOTICEABLE * max(abs(low), abs(high)) - (high - low)
    return (low - missing / 2, high + missing / 2) if missing > 0 else (low, high)


def _step(low: float, high: float, target: int) -> float:
    """Return the step of 1, 2 or 5 times a power of ten that gives at most ``target`` spans."""
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def linear_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Return the multiples of a round step in ``[low, high]``."""
    step = _step(low, high, target)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, target: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = last - first + 1
    if decades >= 3:
        return [10.0**power for power in range(first, last + 1, math.ceil(decades / target))]
    every = [f * 10.0**power for power in range(first - 1, last + 1) for f in (1, 2, 5)]
    return [value for value in every if low <= value <= high]


def tick_labels(values: Sequence[float], *, log: bool = False) -> list[str]:
    """Write ticks with as many digits as tell neighbours apart, all in one style."""
    if not values:
        return []
    size = max(abs(value) for value in values)
    step = min((abs(b - a) for a, b in pairwise(values)), default=size) or 1.0
    if log:
        return [_plain(value) for value in values]
    if size < 1e6 and step >= 0.99e-4:
        decimals = max(0, -math.floor(math.log10(step) + 1e-6))
        return [f"{value:.{decimals}f}" if value else "0" for value in values]
    digits = max(0, math.floor(math.log10(size)) - math.floor(math.log10(step) + 1e-6))
    return [_short_exponent(f"{value:.{digits}e}") if value else "0" for value in values]


def _plain(value: float) -> str:
    return f"{value:.4g}" if 1e-3 * 0.99 <= value < 1e5 else _short_exponent(f"{value:.0e}")


def _short_exponent(text: str) -> str:
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"


def downsample(points: Sequence[Point], limit: int = 500) -> list[Point]:
    """Keep about ``limit`` points: of each bucket the lowest, the highest and a gap."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit // 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        bucket = range(start, min(start + size, len(points)))
        values = {index: y for index in bucket if (y := points[index][1]) is not None}
        gap = next((index for index in bucket if index not in values), None)
        if values:
            kept |= {min(values, key=values.__getitem__), max(values, key=values.__getitem__)}
        if gap is not None:
            kept.add(gap)
    return [points[index] for index in sorted(kept)]


def path(points: Iterable[Point]) -> str:
    """Return the points as an SVG path. A gap lifts the pen; a point between two draws nothing."""
    commands: list[str] = []
    pen_down = False
    for x, y in points:
        if y is not None:
            commands.append(f"{'L' if pen_down else 'M'}{coordinate(x)} {coordinate(y)}")
        pen_down = y is not None
    return "".join(commands)


def dots(points: Sequence[Point], few: int = 12) -> str:
    """Return an SVG path of dots: all points where they are ``few``, else those between gaps."""
    padded = [(0.0, None), *points, (0.0, None)]
    return "".join(
        f"M{coordinate(x)} {coordinate(y)}h0"  # a round line cap makes this a dot
        for before, (x, y), after in zip(padded, points, padded[2:], strict=False)
        if y is not None and (len(points) <= few or before[1] is None is after[1])
    )


def coordinate(value: float) -> str:
    """Write a coordinate to a tenth of a pixel, in as few characters as it takes."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def bars(bins: Iterable[tuple[float, float]], heights: Sequence[float], x: Axis, y: Axis) -> str:
    """Return bars from zero as one SVG path; a bin with an endless edge has none."""
    commands = []
    floor = y.place(0)
    for (left, right), height in zip(bins, heights, strict=False):
        a, b, top = x.place(left), x.place(right), y.place(height)
        if height > 0 and None not in (a, b, top, floor):
            assert a is not None and b is not None and top is not None and floor is not None
            gap = 0.5 if b - a > 3 else 0.0
            left_end, right_end = coordinate(a + gap), coordinate(b - gap)
            # A bin that holds anything must be seen beside one that holds a million.
            upper = coordinate(min(top, floor - 1))
            commands.append(f"M{left_end} {coordinate(floor)}V{upper}H{right_end}V")
            commands.append(f"{coordinate(floor)}Z")
    return "".join(commands)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart until each is ``gap`` from the next, inside ``[low, high]`` if they fit."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = [0.0] * len(positions)
    free = low
    for index in order:
        placed[index] = max(free, positions[index])
        free = placed[index] + gap
    free = high
    for index in reversed(order):
        placed[index] = min(free, placed[index])
        free = placed[index] - gap
    return placed


def levels(
    values: Sequence[float],
    *,
    width: int,
    height: int,
    log: bool = False,
    from_zero: bool = False,
    beside: Sequence[Sequence[float]] = (),
) -> list[int | None]:
    """Return the heights, 0 to ``height - 1``, of a sparkline of at most ``width`` columns.

    Each column is the mean of its values on the chosen scale, or ``None`` where none is finite.
    ``beside`` are the lines that it is compared with: all have one scale.
    """
    every = [values, *beside]
    if log and not any(drawable(value, log=True) for line in every for value in line):
        log = False
    means = _columns(values, width, log=log)
    others = [mean for line in beside for mean in _columns(line, width, log=log)]
    finite = [mean for mean in (*means, *others) if mean is not None]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if from_zero:
        low = min(low, 0.0)
    elif not log and high > low:
        low, high = _opened(low, high)
    span = high - low
    top = height - 1
    return [
        None if m is None else round((m - low) / span * top) if span else top // 2 for m in means
    ]


def _columns(values: Sequence[float], width: int, *, log: bool) -> list[float | None]:
    """Return the means of at most ``width`` pieces of ``values``, on a scale of decades or not."""
    scale: Callable[[float], float] = math.log10 if log else float
    scaled = [scale(value) if drawable(value, log=log) else None for value in values]
    columns = min(width, len(scaled))
    return [
        _mean(scaled[i * len(scaled) // columns : (i + 1) * len(scaled) // columns])
        for i in range(columns)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return sum(value / len(finite) for value in finite) if finite else None
