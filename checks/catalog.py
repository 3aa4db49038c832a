"""What there is to know of the checks without running them, read from their source.

Importing a check imports torch, which takes seconds; what it asks and why is in the text of its
file. Plug-ins' checks are classes that only importing can find, so they are imported, and only
where they are asked for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnaudit.checks import GROUP
from nnaudit.checks.docstring import sections
from nnaudit.checks.selectors import family_of, order, unknown
from nnaudit.errors import UsageError

if TYPE_CHECKING:
    from nnaudit.checks.base import Check

OURS = "nnaudit"
"""The name of our own entry point in the group :data:`GROUP`."""


@dataclass(frozen=True)
class Entry:
    """A check as its documentation describes it; the attributes are those of its class.

    ``kind`` is the value of :class:`nnaudit.report.Kind`; ``documentation`` the docstring by
    section, ``question`` first.
    """

    code: str
    name: str
    kind: str
    trains: bool
    options: Mapping[str, float]
    documentation: Mapping[str, str]

    @property
    def family(self) -> str:
        """The letters of the code."""
        return family_of(self.code)

    @property
    def question(self) -> str:
        """The question, on one line."""
        return " ".join(self.documentation["question"].split())


def catalog() -> list[Entry]:
    """Return every check there is, in battery order."""
    entries = [*builtin_entries(), *_plugin_entries()]
    return sorted(entries, key=lambda entry: order(entry.code))


def find(selector: str) -> Entry:
    """Return the one check with this code or name.

    Raises:
        LookupError: there is none; the message names the nearest.
    """
    for source in (builtin_entries(mentioning=selector), _plugin_entries()):
        for entry in source:
            if selector.upper() == entry.code or selector.lower() == entry.name:
                return entry
    raise LookupError(unknown(selector, words()))


def require(selectors: Iterable[str]) -> None:
    """Make sure that each of ``selectors`` selects something.

    Raises:
        UsageError: one does not; the message names the nearest that would.
    """
    known = words()
    for selector in selectors:
        if selector.upper() not in known and selector.lower() not in known:
            raise UsageError(unknown(selector, known))


def words() -> list[str]:
    """Return all that may select checks: families, codes and names."""
    return [word for entry in catalog() for word in (entry.family, entry.code, entry.name)]


def builtin_entries(mentioning: str = "") -> Iterator[Entry]:
    """Yield nnaudit's own checks, in no order; of ``mentioning`` only files that hold this word."""
    for file in sorted(Path(__file__).parent.glob("*/*.py")):
        text = file.read_text(encoding="utf-8")
        if mentioning.lower() in text.lower():
            yield from _entries_of(text)


_HEAD = re.compile(r"^class .*?(?=^    (?:def|@))", re.MULTILINE | re.DOTALL)
"""A class statement up to its first method: parsing no more takes a tenth of the time."""


def _entries_of(source: str) -> Iterator[Entry]:
    for head in _HEAD.findall(source):
        for node in ast.parse(head).body:
            fields = dict(_assignments(node)) if isinstance(node, ast.ClassDef) else {}
            if "code" in fields:
                yield Entry(
                    code=fields["code"],
                    name=fields["name"],
                    kind=fields["kind"],
                    trains=fields.get("trains", False),
                    options=fields.get("options", {}),
                    documentation=sections(ast.get_docstring(node) or ""),
                )


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Yield the names that a class body assigns, each with its value."""
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, _value(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, _value(value)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                for target, value in zip(names, values, strict=True):
                    yield ast.unparse(target), _value(value)


def _value(node: ast.expr) -> Any:
    """Return a literal's value, ``Kind.EXACT`` as ``exact``; what is computed, as its source."""
    if isinstance(node, ast.Attribute):
        return node.attr.lower()
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _plugin_entries() -> Iterator[Entry]:
    if all(point.name == OURS for point in entry_points(group=GROUP)):
        return
    from nnaudit.checks.registry import Registry

    for check in Registry.load().checks:
        if not check.__module__.startswith(f"{__package__}."):
            yield _entry(check)


def _entry(check: type[Check]) -> Entry:
    return Entry(
        code=check.code,
        name=check.name,
        kind=check.kind.value,
        trains=check.trains,
        options=check.options,
        documentation=check.documentation(),
    )
