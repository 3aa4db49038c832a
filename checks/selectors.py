"""How checks are named by a person: by code, family or name; and the order they are told in.

Must not import torch: commands explain and complete checks without it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

FAMILIES = (
    "DATA",
    "INIT",
    "LOSS",
    "GRAD",
    "STEP",
    "MODE",
    "NORM",
    "FIT",
    "SEED",
    "GEN",
    "PERF",
    "DIST",
)
"""The battery's order."""

_DIGITS = {"O": "0", "I": "1", "L": "1"}


def family_of(code: str) -> str:
    """Return the letters of a check's code."""
    return code.rstrip("0123456789")


def order(code: str) -> tuple[int, str]:
    """Return the key that sorts codes by family, unknown families last, and in each by number."""
    family = family_of(code)
    return FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), code


def unknown(selector: str, known: Collection[str]) -> str:
    """Say that nothing is called ``selector``, and which of the ``known`` words is nearest."""
    # Letters that look like the digits of a code are read as these.
    code = re.sub(r"(?<=\d)[OIL]", lambda m: _DIGITS[m.group()], selector.upper())
    near = [code] if code in known else []
    for word in (selector, selector.upper()):
        near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`nnaudit rule --all` lists them"
    return f"no check has the code, family or name {selector!r}: {hint}"
