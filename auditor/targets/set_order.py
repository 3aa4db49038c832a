"""Sets of strings in another order, as another process would have them.

The order of a set of strings follows PYTHONHASHSEED, which Python draws when it starts: within one
process it is always the same. Here the user's own ``set`` is one that turns it round.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, ClassVar

from nnaudit.errors import is_user
from nnaudit.report import Location
from nnaudit.targets import callstack
from nnaudit.targets.source import content_of, source_of


class _LikeSet(type):
    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, builtins.set)


class ReversedSet(set[Any], metaclass=_LikeSet):
    """A set that yields strings, and tuples of them, in the opposite order."""

    lines: ClassVar[list[Location]] = []
    """Where the user's code went through one, while :func:`turned_sets` is in force."""

    def __iter__(self) -> Iterator[Any]:
        items = list(super().__iter__())
        if len(items) < 2 or not any(_is_hashed_at_random(item) for item in items):
            return iter(items)
        if _TURNED:
            frame = callstack.caller()
            if frame is not None:
                ReversedSet.lines.append(callstack.location(frame))
        return iter(items[::-1])

    def __reduce__(self) -> Any:
        return builtins.set, (list(super().__iter__()),)


def _is_hashed_at_random(item: object) -> bool:
    if isinstance(item, tuple):
        return any(_is_hashed_at_random(part) for part in item)
    return isinstance(item, (str, bytes))


_TURNED: set[str] = set()
"""Not empty while :func:`turned_sets` is in force."""


@contextmanager
def turned_sets() -> Iterator[list[Location]]:
    """Give the user's code :class:`ReversedSet` for ``set``; yield the lines that go through one.

    It holds for scripts that are executed, and for functions of the user's that are called, in the
    time of the ``with``.
    """
    ReversedSet.lines = []
    with ExitStack() as undo:
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            users = isinstance(module, ModuleType) and file and is_user(file)
            if users and "set" not in vars(module):
                vars(module)["set"] = ReversedSet
                undo.callback(vars(module).pop, "set", None)
        _TURNED.add("scripts")
        undo.callback(_TURNED.clear)
        yield ReversedSet.lines


def compiled(path: Path, names: dict[str, Any]) -> CodeType:
    """Return the code of the user's file at ``path``, to be executed with ``names`` for globals.

    Raises:
        SyntaxError: it is no Python.
    """
    source = content_of(str(path))
    if not _TURNED:
        return compile(source, str(path), "exec", dont_inherit=True)
    names["set"] = ReversedSet
    # A tree of its own, which is rewritten, and an error that is Python's.
    tree = ast.fix_missing_locations(_Displays().visit(ast.parse(source, str(path))))
    return compile(tree, str(path), "exec", dont_inherit=True)


class _Displays(ast.NodeTransformer):
    """Writes ``set([a, b])`` for ``{a, b}``."""

    def visit_Set(self, node: ast.Set) -> ast.AST:
        self.generic_visit(node)
        return self._made_of(node, ast.List(elts=node.elts, ctx=ast.Load()))

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        self.generic_visit(node)
        return self._made_of(node, ast.ListComp(elt=node.elt, generators=node.generators))

    def _made_of(self, node: ast.expr, items: ast.expr) -> ast.AST:
        name = ast.copy_location(ast.Name(id="set", ctx=ast.Load()), node)
        call = ast.Call(func=name, args=[ast.copy_location(items, node)], keywords=[])
        return ast.copy_location(call, node)


def has_sets(files: Iterable[Path]) -> bool:
    """Whether any of ``files`` makes a set."""
    return any(_makes_sets(file) for file in files)


def _makes_sets(file: Path) -> bool:
    source = source_of(file)
    displays = any(isinstance(node, (ast.Set, ast.SetComp)) for node in source.nodes)
    return displays or any((call.name, call.receiver) == ("set", "") for call in source.calls)


def unsorted(lines: Iterable[Location]) -> tuple[Location, ...]:
    """Return the user's own of ``lines``, each once, without those that sort what they get."""
    return tuple(
        place
        for place in dict.fromkeys(lines)
        if is_user(place.file)
        and not any(
            call.name.endswith("sorted") for call in source_of(place.file).calls_at(place.line)
        )
    )
