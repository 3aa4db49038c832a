import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnaudit.reports.geometry import (
    Axis,
    axis,
    bars,
    dots,
    downsample,
    levels,
    linear_ticks,
    path,
    spread,
    tick_labels,
)

NAN, INF = math.nan, math.inf
floats = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(values=floats, log=st.booleans(), rounded=st.booleans())
def test_an_axis_places_every_drawable_value_inside_itself(values, log, rounded):
    scale = axis(values, 200, 10, log=log, rounded=rounded)
    for value in values:
        place = scale.place(value)
        assert place is None or 10 - 1e-6 <= place <= 200 + 1e-6
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 12
    assert len({tick.label for tick in ticks}) == len(ticks)
    assert all(10 - 1e-3 <= tick.position <= 200 + 1e-3 for tick in ticks)


def test_what_is_not_finite_has_no_place():
    scale = Axis(0, 1, 0, 100)
    assert [scale.place(v) for v in (NAN, INF, -INF, 1e301, 0.5)] == [None] * 4 + [50]
    assert Axis(0.1, 10, 0, 100, log=True).place(0) is None
    assert Axis(0.1, 10, 0, 100, log=True).place(1) == pytest.approx(50)


def test_a_log_axis_without_positive_values_is_linear():
    assert not axis([-1, 0, NAN], 0, 1, log=True).log


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 2.5, ["0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
        (0, 59, ["0", "20", "40"]),
        (-0.31, 0.31, ["-0.2", "0", "0.2"]),
        (0, 3e-7, ["0", "1e-7", "2e-7", "3e-7"]),
        (0, 4e6, ["0", "1e6", "2e6", "3e6", "4e6"]),
    ],
)
def test_linear_ticks_are_round(low, high, labels):
    assert tick_labels(linear_ticks(low, high)) == labels


def test_log_ticks_are_decades_or_their_halves():
    assert [t.label for t in Axis(1e-4, 1e2, 0, 1, log=True).ticks()] == [
        "1e-4",
        "0.01",
        "1",
        "100",
    ]
    assert [t.label for t in Axis(16, 1024, 0, 1, log=True).ticks()] == [
        *("20", "50", "100", "200", "500", "1000")
    ]


def test_a_narrow_log_axis_has_ticks_that_differ():
    labels = [t.label for t in Axis(5e14, 7.5e14, 0, 1, log=True).ticks()]
    assert labels == ["5.0e14", "5.5e14", "6.0e14", "6.5e14", "7.0e14", "7.5e14"]


def test_a_constant_gets_a_range():
    assert axis([3, 3], 0, 1).low < 3 < axis([3, 3], 0, 1).high
    assert axis([], 0, 1).low < axis([], 0, 1).high


def test_a_gap_lifts_the_pen_and_a_lone_point_is_a_dot():
    points = [(0, 1), (1, 2), (2, None), (3, 4), (4, None), (5.25, 6), (6, 7)]
    assert path(points) == "M0 1L1 2M3 4M5.2 6L6 7"
    assert dots(points, few=0) == "M3 4h0"
    assert dots(points).count("h0") == 5
    assert path([]) == dots([]) == ""


def test_downsampling_keeps_ends_extremes_and_gaps():
    points = [(float(i), math.sin(i / 50)) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[1234] = (1234.0, -99.0)
    points[7000] = (7000.0, None)
    kept = downsample(points, 500)
    assert len(kept) <= 510
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert {points[4321], points[1234], points[7000]} <= set(kept)
    assert kept == sorted(kept, key=lambda point: point[0])


def test_few_points_are_all_kept():
    points = [(0.0, None), (1.0, 2.0)]
    assert downsample(points) == points


def test_bars_stand_on_the_floor_and_skip_endless_bins():
    x, y = Axis(0, 2, 0, 100), Axis(0, 10, 100, 0)
    drawn = bars(pairwise((-INF, 0, 1, 2)), (5, 10, 0), x, y)
    assert drawn == "M0.5 100V0H49.5V100Z"


def test_a_rare_bin_is_still_seen():
    drawn = bars(pairwise((0, 1, 2)), (1_000_000, 1), Axis(0, 2, 0, 100), Axis(0, 1e6, 100, 0))
    assert re.findall(r"V(\d+)H", drawn) == ["0", "99"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 100), max_size=6))
def test_labels_are_spread_apart_inside_their_range(positions):
    placed = sorted(spread(positions, 15, 0, 100))
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(placed))
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in placed)


def test_sparkline_levels():
    assert levels([1, 2, 3], width=10, height=8) == [0, 4, 7]
    assert levels([NAN, 1, INF, 2], width=10, height=8) == [None, 0, None, 7]
    assert levels([5, 5], width=10, height=8) == [3, 3]
    assert levels([0.01, 1, 100], width=10, height=8, log=True) == [0, 4, 7]
    assert levels([90, 100], width=10, height=8, from_zero=True) == [6, 7]
    assert levels([], width=10, height=8) == []
    assert len(levels(range(1000), width=24, height=8)) == 24


@settings(max_examples=100, deadline=None, derandomize=True)
@given(floats, st.booleans())
def test_sparkline_levels_are_always_glyphs(values, log):
    assert all(h is None or 0 <= h < 8 for h in levels(values, width=7, height=8, log=log))


def test_heights_that_hardly_differ_look_so():
    shown = axis([0.6911, 0.6904], 200, 0, rounded=True)
    places = [shown.place(value) for value in (0.6911, 0.6904)]
    assert abs(places[0] - places[1]) < 10
    assert levels([0.6911, 0.6904], width=2, height=8) == [4, 3]
    fallen = axis([0.7, 0.3], 200, 0, rounded=True)
    assert abs(fallen.place(0.7) - fallen.place(0.3)) > 150
    assert levels([0.7, 0.3], width=2, height=8) == [7, 0]
    assert levels([0.7, 0.3], width=2, height=8, beside=[[0.3, 1.7], [NAN]]) == [2, 0]
