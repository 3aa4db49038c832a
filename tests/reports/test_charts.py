import base64
import math
from itertools import pairwise

import pytest

from nnaudit.report import Curve, Histogram, Image, Series
from nnaudit.reports.charts import curve_view, histogram_view, image_view, sparkline_path


def curve(*series, **fields):
    plain = {"title": "t", "x_label": "step", "y_label": "loss"}
    return Curve(series=series, **(plain | fields))


def line(*ys, name="s"):
    return Series(name=name, x=tuple(range(len(ys))), y=ys)


def test_thresholds_are_always_in_the_picture():
    view = curve_view(curve(line(1, 2), thresholds={"limit": 50, "endless": math.inf}))
    (rule,) = view.rules
    assert rule.label == "limit 50"
    assert float(view.frame.top) <= float(rule.y) <= float(view.frame.bottom)


def test_close_thresholds_have_readable_labels():
    view = curve_view(curve(line(0, 10), thresholds={"a": 5.0, "b": 5.01, "c": 5.02}))
    heights = sorted(float(rule.label_y) for rule in view.rules)
    assert all(b - a >= 14.9 for a, b in pairwise(heights))


def test_a_label_gives_way_to_the_curve():
    above = curve_view(curve(line(10, 0, *[5.2] * 30), thresholds={"limit": 5})).rules[0]
    below = curve_view(curve(line(10, 0, *[4.8] * 30), thresholds={"limit": 5})).rules[0]
    assert float(above.label_y) > float(above.y)
    assert float(below.label_y) < float(below.y)


def test_lines_differ_by_more_than_colour():
    view = curve_view(curve(*(line(1, 2, name=str(i)) for i in range(16))))
    assert len({(stroke.color, stroke.dash) for stroke in view.strokes}) == 16
    assert view.strokes[0].dash != view.strokes[1].dash


def test_missing_points_are_counted():
    assert curve_view(curve(line(1, math.nan, math.inf, 2))).missing == 2
    assert curve_view(curve(line(1, -1), log_y=True)).missing == 1


def test_a_description_says_what_the_eye_sees():
    text = curve_view(curve(line(2.5, 1, 1.5, name="train"), thresholds={"floor": 0.5})).description
    assert text == (
        "loss over step. train: 2.5 at 0, 1.5 at 2, lowest 1, highest 2.5. Threshold floor: 0.5."
        " The vertical axis is cut: it begins at 0.5."
    )


@pytest.mark.parametrize("series", [(), (line(),), (line(math.nan),)])
def test_nothing_to_draw_is_no_error(series):
    assert all(not stroke.path for stroke in curve_view(curve(*series)).strokes)
    assert sparkline_path(curve(*series), 88, 20) == ""


def test_a_long_label_is_cut_before_it_leaves_the_picture():
    frame = curve_view(curve(line(1, 2), x_label="x" * 100, y_label="y" * 100)).frame
    assert len(frame.x_label) == 44
    assert len(frame.y_label) == 26


def test_histogram_describes_its_peak():
    view = histogram_view(Histogram(title="t", x_label="x", edges=(0, 1, 2), counts=(3, 9)))
    assert view.description == "12 values from 0 to 2, most of them (9) in the bin 1 to 2."
    assert view.frame.y_ticks[0].label == "0"
    assert view.missing == 0


def test_values_in_endless_bins_are_counted():
    edges = (-math.inf, 0, 1, math.inf)
    view = histogram_view(Histogram(title="t", x_label="x", edges=edges, counts=(3, 2, 1)))
    assert view.missing == 4
    assert view.bars.count("M") == 1


def test_only_a_png_becomes_a_picture():
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + bytes([0, 0, 0, 28, 0, 0, 0, 14])
    good = image_view(Image(png=base64.b64encode(header).decode(), caption=""))
    assert (good.width, good.height) == (112, 56)
    for bad in ("", "AAAA", '"><script>', base64.b64encode(b"GIF89a" + bytes(30)).decode()):
        assert image_view(Image(png=bad, caption="")) is None


def test_bars_of_two_series_stand_beside_each_other_on_zero_and_in_per_cents():
    view = curve_view(curve(line(0.1, 0.2), line(0.3, 0.4), bars=True, shares=True))
    first, second = (stroke.path for stroke in view.strokes)
    starts = [float(path[1:].split(" ")[0]) for path in (first, second)]
    assert starts[0] < starts[1]
    assert all(path.count(f" {view.frame.bottom}V") == 2 for path in (first, second))
    assert [tick.label for tick in view.frame.y_ticks][-1] == "40"
    assert view.frame.y_label == "loss (%)"


def test_heights_that_do_not_begin_at_zero_are_marked_as_cut():
    above = curve_view(curve(line(5.0, 6.0)))
    assert above.frame.cut
    assert "The vertical axis is cut: it begins at " in above.description
    for whole in (curve(line(-1.0, 6.0)), curve(line(5.0, 60.0), log_y=True)):
        view = curve_view(whole)
        assert not view.frame.cut
        assert "cut" not in view.description
