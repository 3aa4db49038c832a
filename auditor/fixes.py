"""Fixes that are one certain change of the user's source, at the line that a finding names.

A fix is offered only where a single place fits; everything else keeps its comments and layout. Must
not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import libcst as cst
from libcst import matchers
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from nnaudit.report import Result, Status


@dataclass(frozen=True)
class Edit:
    """What mends the findings of one check with one of ``statuses``, given the line of one."""

    make: Callable[[Program, int], cst.Module | None]
    statuses: tuple[Status, ...]


class Program:
    """A parsed file: its nodes with the lines they stand on."""

    def __init__(self, source: str) -> None:
        """Parse ``source``.

        Raises:
            libcst.ParserSyntaxError: it is not Python.
        """
        self.wrapper = MetadataWrapper(cst.parse_module(source))
        self.module = self.wrapper.module
        self._places = self.wrapper.resolve(PositionProvider)

    def place(self, node: cst.CSTNode) -> CodeRange:
        """Return where ``node`` stands."""
        return self._places[node]

    def calls(self, names: Sequence[str]) -> Iterator[cst.Call]:
        """Yield the calls of functions with one of these names, however they are imported."""
        for node in matchers.findall(self.module, matchers.Call()):
            assert isinstance(node, cst.Call)
            function = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
            if isinstance(function, cst.Name) and function.value in names:
                yield node

    def call_at(self, line: int, names: Sequence[str]) -> cst.Call | None:
        """Return the one such call that begins in ``line``, or else in the function there."""
        begins = [c for c in self.calls(names) if self.place(c).start.line == line]
        if not begins:
            within = self._function_at(line)
            begins = [c for c in self.calls(names) if within and _inside(self.place(c), within)]
        return begins[0] if len(begins) == 1 else None

    def _function_at(self, line: int) -> CodeRange | None:
        places = map(self.place, matchers.findall(self.module, matchers.FunctionDef()))
        return next((place for place in places if place.start.line == line), None)


def _inside(inner: CodeRange, outer: CodeRange) -> bool:
    return bool(outer.start.line <= inner.start.line and inner.end.line <= outer.end.line)


def fixed(result: Result, source: str) -> str | None:
    """Return ``source`` with what ``result`` found mended; None where no one place is certain."""
    edit = FIXES.get(result.code)
    if edit is None or result.location is None or result.status not in edit.statuses:
        return None
    changed = edit.make(Program(source), result.location.line)
    return None if changed is None or changed.code == source else changed.code


def _with_argument(program: Program, call: cst.Call, name: str, value: str) -> cst.Module:
    """Return the program with the keyword ``name`` of ``call`` set, in its place or at the end."""
    argument = cst.Arg(
        keyword=cst.Name(name),
        value=cst.parse_expression(value),
        equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace("")),
    )
    given = [arg for arg in call.args if arg.keyword and arg.keyword.value == name]
    if given:
        changed: cst.CSTNode = program.module.deep_replace(
            given[0].value, cst.parse_expression(value)
        )
    else:
        *before, last = call.args
        comma = last.comma
        if isinstance(comma, cst.MaybeSentinel):
            spaced = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
            arguments = [*before, last.with_changes(comma=spaced), argument]
        else:  # a trailing comma, perhaps with a line break after it, stays at the end
            spaced = cst.Comma(whitespace_after=_between(before, comma))
            arguments = [
                *before,
                last.with_changes(comma=spaced),
                argument.with_changes(comma=comma),
            ]
        changed = program.module.deep_replace(call, call.with_changes(args=arguments))
    assert isinstance(changed, cst.Module)
    return changed


def _between(before: Sequence[cst.Arg], last: cst.Comma) -> cst.BaseParenthesizableWhitespace:
    """Return what stands between two arguments of a call with a trailing comma."""
    commas = [arg.comma for arg in before if isinstance(arg.comma, cst.Comma)]
    return commas[-1].whitespace_after if commas else cst.SimpleWhitespace(" ")


def _shuffle(program: Program, line: int) -> cst.Module | None:
    """Shuffle the loader, unless it has an order of its own."""
    call = program.call_at(line, ("DataLoader",))
    if call is None or not _takes_keyword(call, position=2):
        return None
    named = {arg.keyword.value for arg in call.args if arg.keyword}
    if named & {"sampler", "batch_sampler"}:
        return None
    return _with_argument(program, call, "shuffle", "True")


_LAYERS = {"Linear": 2, "Conv1d": 7, "Conv2d": 7, "Conv3d": 7}
"""Layers with a bias, and the position of that among their arguments."""


def _without_bias(program: Program, line: int) -> cst.Module | None:
    """Leave out the bias that a normalisation cancels."""
    for name, position in _LAYERS.items():
        call = program.call_at(line, (name,))
        if call is not None and _takes_keyword(call, position=position):
            return _with_argument(program, call, "bias", "False")
    return None


def _takes_keyword(call: cst.Call, *, position: int) -> bool:
    """Whether a keyword can be given to ``call`` whose place among its arguments is ``position``.

    Not where it is given by its place, nor where arguments come from elsewhere (``**options``).
    """
    by_place = sum(arg.keyword is None for arg in call.args)
    return len(call.args) > 0 and by_place <= position and not any(arg.star for arg in call.args)


class _After(cst.CSTTransformer):  # type: ignore[misc, unused-ignore]
    """Puts ``addition`` after ``statement``."""

    def __init__(self, statement: cst.CSTNode, addition: cst.BaseStatement) -> None:
        super().__init__()
        self._statement = statement
        self._addition = addition

    def leave_SimpleStatementLine(  # noqa: N802
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.BaseStatement]:
        """Add the statement."""
        if original_node is not self._statement:
            return updated_node
        return cst.FlattenSentinel([updated_node, self._addition])


_STEP = matchers.SimpleStatementLine(
    body=[
        matchers.Expr(matchers.Call(func=matchers.Attribute(attr=matchers.Name("step")), args=[]))
    ]
)


def _zero_grad(program: Program, line: int) -> cst.Module | None:
    """Zero the gradients after the optimizer's step, in a program that never does."""
    if list(program.calls(("zero_grad",))):
        return None
    steps = [
        s for s in matchers.findall(program.module, _STEP) if program.place(s).start.line == line
    ]
    if len(steps) != 1:
        return None
    (statement,) = steps
    optimizer = program.module.code_for_node(statement).strip().partition(".step(")[0]
    zero = cst.parse_statement(f"{optimizer.splitlines()[-1].strip()}.zero_grad()")
    return program.module.visit(_After(statement, zero))


_FINDINGS = (Status.FAIL, Status.WARN, Status.NOTE)

FIXES = {
    "DATA104": Edit(_shuffle, (Status.FAIL,)),
    "NORM102": Edit(_without_bias, _FINDINGS),
    "STEP102": Edit(_zero_grad, (Status.FAIL,)),
}
"""What mends a finding, by the code of its check."""
