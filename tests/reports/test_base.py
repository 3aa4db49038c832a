import io

import pytest

from nnaudit.reports import FORMATS
from nnaudit.reports.base import Options


class Stream(io.StringIO):
    encoding = "cp1252"

    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.mark.parametrize(
    ("color", "tty", "environ", "colored"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", False, {"FORCE_COLOR": "1"}, True),
        ("auto", True, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colour_is_chosen_by_flag_then_environment_then_terminal(color, tty, environ, colored):
    assert Options().for_stream(Stream(tty), color=color, environ=environ).color is colored


def test_the_width_and_encoding_of_the_stream_are_used(monkeypatch):
    monkeypatch.setenv("COLUMNS", "97")
    options = Options().for_stream(Stream(True), environ={})
    assert (options.width, options.encoding) == (97, "cp1252")
    assert Options().for_stream(io.StringIO(), environ={}).encoding == "utf-8"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_any_number_of_any_reports(name, realistic, hostile):
    for reports in ([], [realistic], [hostile], [hostile, realistic]):
        first = FORMATS[name](reports, Options())
        assert first.endswith("\n")
        assert first == FORMATS[name](reports, Options())
