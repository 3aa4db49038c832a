import math

from nnaudit.report import Curve, Histogram, Numbers, Series
from nnaudit.reports.inline import (
    ASCII,
    UNICODE,
    curve_rows,
    histogram_row,
    number_rows,
    span,
    sparkline,
)


def test_a_sparkline_goes_from_low_to_high_and_shows_gaps():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], UNICODE) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, math.nan, 7], ASCII) == "_ #"


def test_a_span_is_of_the_ends_and_on_demand_of_the_extremes():
    assert span([2.0, 9.0, 1.0], UNICODE) == "2 → 1"
    assert span([2.0, 9.0, 1.0], ASCII, extremes=True) == "2 -> 1, lowest 1, highest 9"
    assert span([math.nan], UNICODE) == "no finite value"


def test_curves_beyond_the_shown_are_counted_and_limits_told():
    series = tuple(Series(name=f"s{i}", x=(0, 1), y=(0, 1)) for i in range(3))
    curve = Curve(title="t", x_label="", y_label="", series=series, thresholds={"floor": 0.5})
    assert curve_rows(curve, ASCII, shown=1) == [
        ("s0", "_#  0 -> 1"),
        ("", "and 2 curves more"),
        ("limit", "floor 0.5"),
    ]


def test_a_histogram_is_drawn_from_zero():
    histogram = Histogram(title="t", x_label="w", edges=(-1, 0, 1), counts=(0, 8))
    assert histogram_row(histogram, ASCII) == "_#  -1 to 1 w"


def test_a_quantity_is_told_with_its_noise_where_that_is_known():
    values = {"loss": 0.41234, "steps": 300, "kind": "Adam", "exact": 1.0, "alone": 2.0}
    noise = {"loss": 0.0123, "kind": 1.0, "exact": 0.0, "alone": math.inf}
    numbers = Numbers(title="t", values=values, noise=noise)
    assert number_rows(numbers) == [
        ("loss", "0.4123 +- 0.012"),
        ("steps", "300"),
        ("kind", "Adam"),
        ("exact", "1"),
        ("alone", "2"),
    ]


def test_shares_are_per_cents_and_a_line_that_returns_tells_its_range():
    assert span([0.25, 0.5], UNICODE, shares=True) == "25% → 50%"
    assert span([0.0, 0.984, 0.0], UNICODE, shares=True) == "0% to 98.4%"
    assert span([1.0, 1.0], UNICODE) == "1 → 1"
