"""Text and numbers as a person reads them, with nothing hidden in them.

Layer names, messages and tracebacks come from the audited program. A control or direction
character in them could repaint a terminal or reverse a line, so it is shown by its escape.
"""

from __future__ import annotations

import math
import re

PHRASE_LIMIT = 2_000
TEXT_LIMIT = 20_000

# Python writes these escapes in a literal, so a reader knows them.
_HIDDEN = re.compile(
    "["
    "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # control characters but tab and line feed
    "\\xad\\u061c\\u180e\\u200b\\u200e\\u200f\\u202a-\\u202e\\u2060-\\u206f\\ufeff"  # bidi, unseen
    "\\u2028\\u2029\\ufff9-\\ufffb\\U000e0000-\\U000e007f"  # separators, annotations, tags
    "\\ud800-\\udfff\\ufdd0-\\ufdef\\ufffe\\uffff"  # no characters at all
    + "".join(chr(plane << 16 | last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten(text: str, limit: int) -> str:
    """Cut ``text`` after ``limit`` characters and say how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text) - limit:,} characters more)"


def visible(text: str, limit: int = PHRASE_LIMIT) -> str:
    """Return ``text`` with hidden characters written as escapes, cut after ``limit`` characters.

    Tabs and line feeds stay. Joiners stay too: scripts and emoji need them, and they cannot
    reorder anything.
    """
    return _HIDDEN.sub(_escape, shorten(text, limit).replace("\r\n", "\n"))


def one_line(text: str, limit: int = PHRASE_LIMIT) -> str:
    """Return ``visible(text)`` with every run of white space made one space."""
    return " ".join(visible(text, limit).split())


def paragraphs(text: str) -> tuple[tuple[bool, str], ...]:
    """Return a docstring's paragraphs and list items, each on one line; True tells an item."""
    found: list[tuple[bool, list[str]]] = []
    begins = True
    for line in text.splitlines():
        words = line.split()
        item = line.lstrip().startswith("- ")
        if words and (begins or item):
            found.append((item, words[item:]))
        elif words:
            found[-1][1].extend(words)
        begins = not words
    return tuple((item, " ".join(words)) for item, words in found)


def format_number(value: float) -> str:
    """Write ``value`` with four significant digits, whole numbers in full up to 1e15."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", f"{value:.4g}")


def format_noisy(value: float, noise: float) -> str:
    """Write ``value`` with how far chance carries it: ``0.4123 +- 0.011``."""
    if not (math.isfinite(noise) and noise > 0):
        return format_number(value)
    return f"{format_number(value)} +- {noise:.2g}"


def format_cell(value: float | str) -> str:
    """Write one cell of a table or one value of a list of numbers."""
    return value if isinstance(value, str) else format_number(value)


def format_seconds(seconds: float) -> str:
    """Write a duration: milliseconds below a second, minutes from two minutes on."""
    if not math.isfinite(seconds):
        return "an unknown time"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
