"""The text of the user's program: each file is read and parsed once, and asked here.

A file that cannot be read or parsed has an empty tree, in which nothing is found, and says why in
:attr:`Source.error`; nothing here raises. Must not import torch.
"""

from __future__ import annotations

import ast
import io
import linecache
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import CodeType
from typing import TypeVar

from nnaudit.targets import notebook

LoopStatement = ast.For | ast.AsyncFor | ast.While

_Node = TypeVar("_Node", bound=ast.AST)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_FUNCTIONS = (*_DEFINITIONS, ast.Lambda)


@dataclass(frozen=True)
class Call:
    """A call in a source.

    Attributes:
        name: what is called, without what stands before the dot; empty where it has no name.
        receiver: the text before the dot; empty for a name that is called by itself.
        line: its first line; ``end`` is its last one.
        function: the first line of the function that it is in; 0 outside all.
        loop: the first line of the outermost loop around it in that function; 0 outside all.
        node: its syntax.
    """

    name: str
    receiver: str
    line: int
    end: int
    function: int
    loop: int
    node: ast.Call

    def spans(self, line: int) -> bool:
        """Whether ``line`` is one of the call's."""
        return self.line <= line <= self.end

    @property
    def takes_a_literal_number(self) -> bool:
        """Whether its one argument is an integer, written as such: ``seed(42)``."""
        arguments = [*self.node.args, *(keyword.value for keyword in self.node.keywords)]
        if len(arguments) != 1:
            return False
        value = arguments[0]
        if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
            value = value.operand
        return isinstance(value, ast.Constant) and type(value.value) is int

    def says(self, argument: str, value: object) -> bool:
        """Whether it is given ``value``, written as such, for its keyword ``argument``."""
        return any(
            keyword.arg == argument
            and isinstance(keyword.value, ast.Constant)
            and keyword.value.value is value
            for keyword in self.node.keywords
        )


@dataclass(frozen=True)
class _Place:
    """What a line lies in: the name and first line of its function, and the loops in that."""

    function: tuple[str, int]
    loops: tuple[LoopStatement, ...]


class Source:
    """A file of the user's.

    Attributes:
        file: its name.
        text: what it says; empty where it cannot be read.
        tree: its syntax; without statements where it has none.
        error: why there is no tree: OSError (unreadable), SyntaxError, ValueError (null bytes, no
            notebook), RecursionError or MemoryError (nested too deeply). None where there is one.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.text = ""
        self.tree = ast.Module([], [])
        self.error: Exception | None = None
        try:
            content = content_of(file)
            self.text = _decoded(content)
            self.tree = ast.parse(content, file)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self.error = error

    # --- nodes ------------------------------------------------------------------------------------

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node, outer ones first."""
        return tuple(ast.walk(self.tree))

    def find(self, kind: type[_Node]) -> Iterator[_Node]:
        """Yield the nodes of a kind, outer ones first."""
        return (node for node in self.nodes if isinstance(node, kind))

    def at(self, line: int, kind: type[_Node]) -> list[_Node]:
        """Return the nodes of a kind that ``line`` is in, outer ones first.

        ``kind`` is a statement or an expression: these have lines.
        """
        return [node for node in self.find(kind) if line in _lines(node)]

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the nodes around ``node``, inner ones first."""
        parent = self._parents.get(node)
        while parent is not None:
            yield parent
            parent = self._parents.get(parent)

    def scope_of(self, node: ast.AST) -> ast.AST:
        """Return the function that ``node`` is in, or the file where it is in none."""
        around = self.ancestors(node)
        return next((each for each in around if isinstance(each, _DEFINITIONS)), self.tree)

    @cached_property
    def _parents(self) -> dict[ast.AST, ast.AST]:
        return {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    # --- loops ------------------------------------------------------------------------------------

    def loops_at(self, line: int) -> tuple[LoopStatement, ...]:
        """Return the loops around ``line`` in its function, outermost first."""
        place = self._places.get(line)
        return place.loops if place is not None else ()

    def loops_around(self, code: CodeType, line: int) -> tuple[LoopStatement, ...]:
        """Return the loops of the function ``code`` that its ``line`` is in, outermost first.

        None for a lambda or a comprehension, which have no statements.
        """
        place = self._places.get(line)
        module = code.co_name == "<module>"
        function = ("", 0) if module else (code.co_name, code.co_firstlineno)
        return place.loops if place is not None and place.function == function else ()

    @cached_property
    def _places(self) -> dict[int, _Place]:
        """By line; the innermost statement counts, and so a function's head is outside of it."""
        found: dict[int, _Place] = {}
        for node in self.find(ast.stmt):
            function, loops = self._around(node)
            if isinstance(node, _LOOPS):
                loops = (*loops, node)
            name = getattr(function, "name", "")
            place = _Place((name, _first_line(function)), loops)
            found.update(dict.fromkeys(_lines(node), place))
        return found

    def _around(self, node: ast.AST) -> tuple[ast.AST | None, tuple[LoopStatement, ...]]:
        """Return the function around ``node``, and its loops around it, outermost first."""
        loops: list[LoopStatement] = []
        for each in self.ancestors(node):
            if isinstance(each, _FUNCTIONS):
                return each, tuple(loops[::-1])
            if isinstance(each, _LOOPS):
                loops.append(each)
        return None, tuple(loops[::-1])

    # --- calls ------------------------------------------------------------------------------------

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """Every call, outer ones first."""
        return tuple(map(self._call, self.find(ast.Call)))

    def calls_at(self, line: int) -> list[Call]:
        """Return the calls that ``line`` is in, outer ones first."""
        return self._calls_by_line.get(line, [])

    @cached_property
    def _calls_by_line(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            for line in range(call.line, call.end + 1):
                found.setdefault(line, []).append(call)
        return found

    def _call(self, node: ast.Call) -> Call:
        function, loops = self._around(node)
        return Call(
            name=called(node),
            receiver=written(node.func.value) if isinstance(node.func, ast.Attribute) else "",
            line=node.lineno,
            end=node.end_lineno or node.lineno,
            function=_first_line(function),
            loop=loops[0].lineno if loops else 0,
            node=node,
        )

    def is_mentioned(self, line: int) -> bool:
        """Whether the name of the function that begins at ``line`` is read anywhere; True for 0."""
        names = {node.name for node in self.find(ast.FunctionDef) if node.lineno == line}
        names |= {node.name for node in self.find(ast.AsyncFunctionDef) if node.lineno == line}
        return not names or not names.isdisjoint(self._read)

    @cached_property
    def _read(self) -> frozenset[str]:
        """Every name and attribute that is read, and every text, which may name one."""
        return frozenset(
            {node.id for node in self.find(ast.Name) if isinstance(node.ctx, ast.Load)}
            | {node.attr for node in self.find(ast.Attribute)}
            | {node.value for node in self.find(ast.Constant) if isinstance(node.value, str)}
        )

    def uncalled(self, name: str) -> tuple[int, ...]:
        """Return the lines whose statement is a method's name, without the call: ``opt.step``."""
        return tuple(
            node.lineno
            for node in self.find(ast.Expr)
            if isinstance(node.value, ast.Attribute) and node.value.attr == name
        )

    # --- text -------------------------------------------------------------------------------------

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The lines of the text, the first of which has the number 1 elsewhere."""
        return tuple(line.rstrip("\n") for line in io.StringIO(self.text))

    @cached_property
    def comments(self) -> tuple[tuple[int, str], ...]:
        """The comments, ``#`` included, each with its line; none where there is no tree."""
        if self.error is not None:
            return ()
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(self.text).readline))
        except (tokenize.TokenError, SyntaxError):
            return ()
        return tuple((t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT)


def source_of(file: str | Path) -> Source:
    """Return the source of ``file``, parsed anew only when it was written to meanwhile.

    A cell of a notebook, and other code that is in no file, is found in ``linecache``.
    """
    return _parsed(str(file), _version(str(file)))


@lru_cache(maxsize=256)
def _parsed(file: str, version: object) -> Source:
    return Source(file)


def _version(file: str) -> object:
    try:
        status = Path(file).stat()
    except (OSError, ValueError):
        return tuple(linecache.getlines(file))
    return status.st_mtime_ns, status.st_size, status.st_ino


def content_of(file: str) -> bytes:
    """Return the code of ``file``: what it holds, the cells of a notebook, or what was run as it.

    Raises:
        OSError: there is no such file, and nothing of its name was run.
        ValueError: it is a notebook that cannot be read as one.
    """
    if file.endswith(notebook.SUFFIX):
        return notebook.script_of(Path(file)).encode()
    try:
        return Path(file).read_bytes()
    except OSError:
        lines = linecache.getlines(file)
        if not lines:
            raise
        return "".join(lines).encode()


def _decoded(content: bytes) -> str:
    """Return ``content`` as text, with line ends as in Python, whatever is wrong with it."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError:
        encoding = "utf-8"
    text = content.decode(encoding, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def called(node: ast.Call) -> str:
    """Return the name of what is called, without what stands before the dot; else nothing."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def written(node: ast.AST) -> str:
    """Return the text of ``node``; three dots where it is nested too deeply to be written out."""
    try:
        return ast.unparse(node)
    except RecursionError:
        return "..."


def _first_line(function: ast.AST | None) -> int:
    """Return the line by which a function's code object knows it; 0 for none."""
    if function is None:
        return 0
    first: int = function.lineno  # type: ignore[attr-defined]
    decorators: list[ast.expr] = getattr(function, "decorator_list", [])
    return min([first, *(each.lineno for each in decorators)])


def _lines(node: ast.AST) -> range:
    first: int = node.lineno  # type: ignore[attr-defined]
    return range(first, (node.end_lineno or first) + 1)  # type: ignore[attr-defined]


def assigned(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield what is assigned to what, ``best, bad = score, 0`` one by one."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        yield from zip(target.elts, value.elts, strict=False)
    else:
        yield target, value
