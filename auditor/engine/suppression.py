"""Findings that the user does not want to act on: comments in the source, a table of the settings.

A suppressed finding keeps its status and is listed with the reason; it counts in no verdict. A
finding about several modules is suppressed only when each of them is, so that a new fault cannot
hide behind an old one. Must not import torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from nnaudit.report import Location, Result, Status
from nnaudit.targets.source import Source, source_of

FINDINGS = (Status.FAIL, Status.WARN, Status.NOTE)
"""What can be suppressed: a crash cannot, and the other answers ask nothing of the user."""

_COMMENT = re.compile(r"#\s*nnaudit:\s*ignore\s*(\[(?P<codes>[^\]]*)\])?\s*(?P<reason>.*)")


@dataclass(frozen=True)
class Comment:
    """One ``# nnaudit: ignore[CODE, ...] reason``.

    Attributes:
        line: where it stands.
        lines: the first and the last line of the simple statement around it.
        selectors: codes, families or names of checks; none where the brackets are missing.
        reason: what follows, in the user's words.
    """

    line: int
    lines: tuple[int, int]
    selectors: tuple[str, ...]
    reason: str


def comments_in(file: str | Path) -> tuple[Comment, ...]:
    """Return the comments for nnaudit in a source file; none where it cannot be read as Python."""
    source = source_of(file)
    if "nnaudit" not in source.text:
        return ()
    statements = list(_simple_statements(source))
    found = []
    for line, text in source.comments:
        match = _COMMENT.match(text)
        if match is None:
            continue
        around = next((s for s in statements if s[0] <= line <= s[1]), (line, line))
        selectors = tuple(re.findall(r"[^,\s]+", match["codes"] or ""))
        found.append(Comment(line, around, selectors, match["reason"].strip()))
    return tuple(found)


def _simple_statements(source: Source) -> Iterator[tuple[int, int]]:
    """Yield the line ranges of the statements that hold no others, like a call over many lines."""
    for node in source.find(ast.stmt):
        if not (hasattr(node, "body") or hasattr(node, "cases")):
            yield node.lineno, node.end_lineno or node.lineno


def applied(
    result: Result,
    per_module: Mapping[str, Iterable[str]],
    places: Iterable[Location],
) -> Result:
    """Return ``result``, with the reason where the user suppressed it.

    ``per_module`` maps patterns of module names to selectors of checks; ``places`` are the lines
    that the finding is about.
    """
    if result.status not in FINDINGS:
        return result
    by_table = _by_table(result, per_module)
    reason = by_table or _by_comments(result, tuple(places))
    by = "settings" if by_table else "source"
    return (
        result.model_copy(update={"suppressed": reason, "suppressed_by": by}) if reason else result
    )


def _by_table(result: Result, per_module: Mapping[str, Iterable[str]]) -> str:
    patterns = [
        pattern
        for pattern, selectors in per_module.items()
        if any(_names(selector, result) for selector in selectors)
    ]
    used = [
        next((pattern for pattern in patterns if _covers(pattern, module)), None)
        for module in result.modules or (result.module,)
    ]
    if None in used:
        return ""
    named = " and ".join(f'"{pattern}"' for pattern in dict.fromkeys(used))
    return f"per-module-ignores: {named}"


def _covers(pattern: str, module: str) -> bool:
    """``net.embed.*`` covers ``net.embed`` and everything in it."""
    return fnmatchcase(module, pattern) or fnmatchcase(f"{module}.", pattern)


def _by_comments(result: Result, places: tuple[Location, ...]) -> str:
    reasons = [_at(place, result) for place in places]
    return "; ".join(dict.fromkeys(reasons)) if reasons and all(reasons) else ""


def _at(place: Location, result: Result) -> str:
    for comment in comments_in(place.file):
        if comment.lines[0] <= place.line <= comment.lines[1] and any(
            _names(selector, result) for selector in comment.selectors
        ):
            where = f"{Path(place.file).name}:{comment.line}"
            return f"{comment.reason} ({where})" if comment.reason else f"comment at {where}"
    return ""


def _names(selector: str, result: Result) -> bool:
    return selector.upper() in (result.code, result.family) or selector.lower() == result.name
