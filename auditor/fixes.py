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
    """A parsed file: its nodes with the lines they stand on.

    ``subject`` is the module that the finding is about, as ``model.named_modules()`` names it.
    """

    def __init__(self, source: str, subject: str = "") -> None:
        """Parse ``source``.

        Raises:
            libcst.ParserSyntaxError: it is not Python.
        """
        self.wrapper = MetadataWrapper(cst.parse_module(source))
        self.module = self.wrapper.module
        self.subject = subject
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

    def statement_at(self, line: int, pattern: matchers.SimpleStatementLine) -> cst.CSTNode | None:
        """Return the one statement like ``pattern`` that begins in ``line``."""
        alike = matchers.findall(self.module, pattern)
        found = [each for each in alike if self.place(each).start.line == line]
        return found[0] if len(found) == 1 else None

    def with_replaced(self, old: cst.CSTNode, new: cst.CSTNode) -> cst.Module:
        """Return the module with ``new`` in the place of ``old``."""
        changed = self.module.deep_replace(old, new)
        assert isinstance(changed, cst.Module)
        return changed

    def in_one_function(self, *nodes: cst.CSTNode) -> bool:
        """Whether the same functions are around all ``nodes``."""
        functions = matchers.findall(self.module, matchers.FunctionDef())
        around = [
            {f for f in functions if _inside(self.place(node), self.place(f))} for node in nodes
        ]
        return all(each == around[0] for each in around)

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
    changed = edit.make(Program(source, result.module), result.location.line)
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
        return program.with_replaced(given[0].value, cst.parse_expression(value))
    *before, last = call.args
    comma = last.comma
    if isinstance(comma, cst.MaybeSentinel):
        spaced = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        arguments = [*before, last.with_changes(comma=spaced), argument]
    else:  # a trailing comma, perhaps with a line break after it, stays at the end
        spaced = cst.Comma(whitespace_after=_between(before, comma))
        arguments = [*before, last.with_changes(comma=spaced), argument.with_changes(comma=comma)]
    return program.with_replaced(call, call.with_changes(args=arguments))


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
        call = call or _in_sequence(program, line, name)
        if call is not None and _takes_keyword(call, position=position):
            return _with_argument(program, call, "bias", "False")
    return None


def _in_sequence(program: Program, line: int, layer: str) -> cst.Call | None:
    """Return the subject's call where it is the N-th argument of the one Sequential in ``line``."""
    sequence = program.call_at(line, ("Sequential",))
    position = program.subject.rpartition(".")[2]
    if sequence is None or not position.isdecimal() or int(position) >= len(sequence.args):
        return None
    if any(arg.star or arg.keyword for arg in sequence.args):
        return None
    chosen = sequence.args[int(position)].value
    calls = list(program.calls((layer,)))
    return chosen if isinstance(chosen, cst.Call) and chosen in calls else None


def _takes_keyword(call: cst.Call, *, position: int) -> bool:
    """Whether a keyword can be given to ``call`` whose place among its arguments is ``position``.

    Not where it is given by its place, nor where arguments come from elsewhere (``**options``).
    """
    by_place = sum(arg.keyword is None for arg in call.args)
    return len(call.args) > 0 and by_place <= position and not any(arg.star for arg in call.args)


class _Beside(cst.CSTTransformer):  # type: ignore[misc, unused-ignore]
    """Puts ``addition`` after ``statement``, or before it."""

    def __init__(
        self, statement: cst.CSTNode, addition: cst.BaseStatement, *, before: bool = False
    ) -> None:
        super().__init__()
        self._statement = statement
        self._addition = addition
        self._before = before

    def leave_SimpleStatementLine(  # noqa: N802
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.BaseStatement]:
        """Add the statement."""
        if original_node is not self._statement:
            return updated_node
        if not self._before:
            return cst.FlattenSentinel([updated_node, self._addition])
        # What stands above the statement, a comment say, stays above both.
        above = updated_node.leading_lines
        first = self._addition.with_changes(leading_lines=above)
        return cst.FlattenSentinel([first, updated_node.with_changes(leading_lines=())])


_STEP = matchers.SimpleStatementLine(
    body=[
        matchers.Expr(matchers.Call(func=matchers.Attribute(attr=matchers.Name("step")), args=[]))
    ]
)


def _zero_grad(program: Program, line: int) -> cst.Module | None:
    """Zero the gradients after the optimizer's step, in a program that never does."""
    if list(program.calls(("zero_grad",))):
        return None
    statement = program.statement_at(line, _STEP)
    if statement is None:
        return None
    optimizer = program.module.code_for_node(statement).strip().partition(".step(")[0]
    zero = cst.parse_statement(f"{optimizer.splitlines()[-1].strip()}.zero_grad()")
    return program.module.visit(_Beside(statement, zero))


_ACTIVATIONS = ("softmax", "sigmoid")
_LOSSES = ("cross_entropy", "binary_cross_entropy_with_logits", "criterion", "loss_fn")


def _without_activation(program: Program, line: int) -> cst.Module | None:
    """Give a loss the logits, where the activation is written in its call."""
    inner = [call for call in program.calls(_ACTIVATIONS) if program.place(call).start.line == line]
    outer = [call for call in program.calls(_LOSSES) if call.args and call.args[0].value in inner]
    if len(inner) != 1 or len(outer) != 1:
        return None
    (call,) = inner
    receiver = call.func.value if isinstance(call.func, cst.Attribute) else None
    named = matchers.Attribute(attr=matchers.Name("functional") | matchers.Name("special"))
    library = matchers.Name("torch") | matchers.Name("F") | named
    if receiver is not None and not matchers.matches(receiver, library):
        logits: cst.BaseExpression | None = receiver
    else:
        logits = call.args[0].value if call.args else None
    return None if logits is None else program.with_replaced(call, logits)


def _unscale(program: Program, line: int) -> cst.Module | None:
    """Take the scale out of the gradients before they are clipped."""
    steps = [
        (call.func.value, call.args[0].value)
        for call in program.calls(("step",))
        if isinstance(call.func, cst.Attribute) and len(call.args) == 1 and not call.args[0].keyword
    ]
    if len(steps) != 1 or list(program.calls(("unscale_",))):
        return None
    clip = program.statement_at(line, matchers.SimpleStatementLine())
    if clip is None:
        return None
    scaler, optimizer = map(program.module.code_for_node, steps[0])
    unscaled = cst.parse_statement(f"{scaler}.unscale_({optimizer})")
    return program.module.visit(_Beside(clip, unscaled, before=True))


_SAMPLER = matchers.Assign(
    targets=[matchers.AssignTarget(target=matchers.Name())],
    value=matchers.Call(
        func=matchers.Name("DistributedSampler")
        | matchers.Attribute(attr=matchers.Name("DistributedSampler"))
    ),
)


def _set_epoch(program: Program, line: int) -> cst.Module | None:
    """Tell the only sampler of the ranks which epoch it is, at the head of the loop over epochs."""
    samplers = matchers.findall(program.module, _SAMPLER)
    loops = matchers.findall(program.module, matchers.For(target=matchers.Name()))
    epochs = [loop for loop in loops if _has_loops(loop)]
    if len(samplers) != 1 or len(epochs) != 1 or list(program.calls(("set_epoch",))):
        return None
    sampler, loop = samplers[0], epochs[0]
    assert isinstance(sampler, cst.Assign) and isinstance(loop, cst.For)
    if not program.in_one_function(sampler, loop):
        return None
    name, epoch = map(program.module.code_for_node, (sampler.targets[0].target, loop.target))
    told = cst.parse_statement(f"{name}.set_epoch({epoch})")
    body = loop.body.with_changes(body=[told, *loop.body.body])
    return program.with_replaced(loop.body, body)


def _has_loops(loop: cst.CSTNode) -> bool:
    return isinstance(loop, cst.For) and bool(matchers.findall(loop.body, matchers.For()))


_FINDINGS = (Status.FAIL, Status.WARN, Status.NOTE)

FIXES = {
    "DATA104": Edit(_shuffle, (Status.FAIL,)),
    "DIST103": Edit(_set_epoch, (Status.FAIL,)),
    "LOSS101": Edit(_without_activation, (Status.FAIL,)),
    "NORM102": Edit(_without_bias, _FINDINGS),
    "STEP102": Edit(_zero_grad, (Status.FAIL,)),
    "STEP104": Edit(_unscale, (Status.FAIL,)),
}
"""What mends a finding, by the code of its check."""
