import math

import pytest

from nnaudit.reports.text import (
    format_cell,
    format_number,
    format_seconds,
    one_line,
    paragraphs,
    shorten,
    visible,
)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("\ufeff\u2028", "\\ufeff\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041\U0001ffff", "\\U000e0041\\U0001ffff"),
        ("a\r\nb\rc", "a\nb\\x0dc"),
        ("tab\tand\nline", "tab\tand\nline"),
        (
            "\u0645\u200c\u0627 \U0001f469\u200d\U0001f52c",
            "\u0645\u200c\u0627 \U0001f469\u200d\U0001f52c",
        ),
    ],
)
def test_hidden_characters_become_visible_and_others_stay(raw, shown):
    assert visible(raw) == shown


def test_a_long_text_is_cut_and_says_by_how_much():
    assert shorten("abcdef", 6) == "abcdef"
    assert visible("x" * 1_000_000, 10) == "xxxxxxxxxx... (999,990 characters more)"


def test_one_line_has_no_line_feeds():
    assert one_line(" a\n\t b ") == "a b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1200000.0, "1200000"),
        (2.302585, "2.303"),
        (1e-5, "1e-5"),
        (-1.5e-12, "-1.5e-12"),
        (1e20, "1e20"),
        (1.5e300, "1.5e300"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text
    assert format_cell(value) == text


def test_a_text_cell_stays_as_it_is():
    assert format_cell("1.000") == "1.000"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.41, "410 ms"),
        (12.43, "12.4 s"),
        (300.0, "5.0 min"),
        (math.nan, "an unknown time"),
    ],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_a_docstring_has_paragraphs_and_items():
    text = "One\n    line.\n    - Item that\n      goes on.\n    - Another.\n\n    The end."
    assert paragraphs(text) == (
        (False, "One line."), (True, "Item that goes on."), (True, "Another."), (False, "The end."),
    )  # fmt: skip
