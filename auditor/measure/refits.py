"""Encoders and scalers that a program's source fits again, to held-out rows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nnaudit.measure.early_fits import BY_INPUTS, BY_TARGET, HELD_OUT, TRAINING
from nnaudit.targets.source import Source, assigned, called, written

_KINDS = (
    BY_TARGET
    | BY_INPUTS
    | {"LabelBinarizer", "LabelEncoder", "MultiLabelBinarizer", "OneHotEncoder", "OrdinalEncoder"}
)
"""Classes of scikit-learn whose result depends on the rows that they were fitted to."""

_NUMBERING = re.compile(
    r"^(build|make|create|learn|fit|train)_?(the_)?\w*"
    r"(vocab|tokeni[sz]er|word2i|char2i|token2i|stoi|label2i|encoder|index_of)|^vocab(ulary)?$",
    re.IGNORECASE,
)
"""Functions and classes that number what occurs in the rows that they are given, by their names."""

_STATISTICS = frozenset({"mean", "std", "median", "min", "max", "amin", "amax"})

CATEGORICAL = "Categorical"
"""The codes of pandas' categories, which count the values that occur."""


@dataclass(frozen=True)
class Refit:
    """A fit to held-out rows, beside one to training rows.

    Attributes:
        kind: the class that is fitted.
        rows: what it is fitted to, as it is written.
        line: of the fit; ``first`` is that of the fit to training rows.
    """

    kind: str
    rows: str
    line: int
    first: int


def refits(source: Source) -> tuple[Refit, ...]:
    """Return the fits of ``source`` to rows named as held-out ones are.

    A class counts that is fitted to training rows of the same name, too (``train.city`` and
    ``test.city``), or an object that is: each set then has numbers of its own for the same thing.
    So does a function or class that makes a vocabulary by its name, where what it makes of held-out
    rows goes into a call with these rows, and a function that subtracts the mean of its argument
    and divides by the deviation, or the like of its extremes.
    A fit to both (``pd.concat([train, test])``) is none, nor is one to something else, as a
    projection of validation's embeddings for a plot.
    """
    kinds = {
        written(target): called(node.value)
        for node in source.find(ast.Assign)
        if isinstance(node.value, ast.Call) and called(node.value) in _KINDS
        for target in node.targets
    }
    training: list[_Fit] = []
    held_out: list[_Fit] = []
    for fit in (*_fits(source, kinds), *_codes(source), *_numberings(source), *_scalings(source)):
        if bool(TRAINING.search(fit.rows)) is bool(HELD_OUT.search(fit.rows)):
            continue
        (training if TRAINING.search(fit.rows) else held_out).append(fit)
    pairs = ((fit, [of for of in training if _same(of, fit)]) for fit in held_out)
    return tuple(Refit(fit.kind, fit.rows, fit.line, of[0].line) for fit, of in pairs if of)


@dataclass(frozen=True)
class _Fit:
    """A fit of an object ``of`` a class (empty without a name) to ``rows``, as they are written."""

    kind: str
    of: str
    rows: str
    line: int


def _same(training: _Fit, held_out: _Fit) -> bool:
    """Whether both fits are of the same thing: by one object, or to rows of the same name."""
    if training.kind != held_out.kind:
        return False
    first, second = _named(training.rows), _named(held_out.rows)
    return training.of == held_out.of != "" or first <= second or second <= first


def _named(rows: str) -> set[str]:
    """Return the words of ``rows`` but those that say of which split they are."""
    words = set(re.findall(r"[a-z]+", rows.lower()))
    return {word for word in words if not TRAINING.search(word) and not HELD_OUT.search(word)}


def _fits(source: Source, kinds: dict[str, str]) -> Iterator[_Fit]:
    """Yield each fit of one of :data:`_KINDS`."""
    for call in source.find(ast.Call):
        if called(call) not in ("fit", "fit_transform") or not call.args:
            continue
        of = call.func.value if isinstance(call.func, ast.Attribute) else call
        kind = called(of) if isinstance(of, ast.Call) else kinds.get(written(of), "")
        if kind in _KINDS:
            name = "" if isinstance(of, ast.Call) else written(of)
            yield _Fit(kind, name, written(call.args[0]), call.lineno)


def _codes(source: Source) -> Iterator[_Fit]:
    """Yield the same of ``rows.astype("category").cat.codes`` and ``pd.Categorical(rows).codes``.

    Those that are given their categories are left out.
    """
    for node in source.find(ast.Attribute):
        made = node.value
        if isinstance(made, ast.Attribute) and made.attr == "cat":
            made = made.value
        if node.attr != "codes" or not isinstance(made, ast.Call) or made.keywords:
            continue
        named = [each.value for each in made.args if isinstance(each, ast.Constant)]
        if called(made) == "astype" and named == ["category"]:
            if isinstance(made.func, ast.Attribute):
                yield _Fit(CATEGORICAL, "", written(made.func.value), node.lineno)
        elif called(made) == "Categorical" and len(made.args) == 1:
            yield _Fit(CATEGORICAL, "", written(made.args[0]), node.lineno)


def _numberings(source: Source) -> Iterator[_Fit]:
    """Yield the calls that make a vocabulary of some rows and are used with such rows.

    A vocabulary of held-out rows that is only compared with that of training is left out.
    """
    calls = list(source.find(ast.Call))
    names = {
        written(target): node.value
        for node in source.find(ast.Assign)
        if isinstance(node.value, ast.Call) and _NUMBERING.search(called(node.value))
        for target in node.targets
    }
    for call in calls:
        if not _NUMBERING.search(called(call)) or not call.args:
            continue
        rows = written(call.args[0])
        own = {name for name, made in names.items() if made is call}
        used = any(
            (call in each.args or own & {written(a) for a in each.args})
            and _goes_with_held_out(each, call)
            for each in calls
            if each is not call
        )
        if used or TRAINING.search(rows):
            yield _Fit(called(call), "", rows, call.lineno)


def _scalings(source: Source) -> Iterator[_Fit]:
    """Yield the calls of functions of the file that scale an argument by its own statistics.

    Those that take such statistics from elsewhere for some calls (``mean=None``) are left out.
    """
    scaling = {
        function.name: number
        for function in source.find(ast.FunctionDef)
        for number, argument in enumerate(function.args.args)
        if not function.args.defaults and _scales_itself(function, argument.arg)
    }
    for call in source.find(ast.Call):
        number = scaling.get(called(call), len(call.args))
        if isinstance(call.func, ast.Name) and number < len(call.args):
            yield _Fit(f"{called(call)}()", "", written(call.args[number]), call.lineno)


def _scales_itself(function: ast.FunctionDef, rows: str) -> bool:
    """Whether ``function`` subtracts from ``rows`` and divides by statistics of ``rows``."""
    own = {
        written(target)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        for each in node.targets
        for target, value in assigned(each, node.value)
        if _is_statistic(value, rows)
    }
    divided = (
        node
        for node in ast.walk(function)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
    )
    return any(
        isinstance(node.left, ast.BinOp)
        and isinstance(node.left.op, ast.Sub)
        and written(node.left.left) == rows
        and _made_of(node.left.right, rows, own)
        and _made_of(node.right, rows, own)
        for node in divided
    )


def _made_of(value: ast.expr, rows: str, own: set[str]) -> bool:
    """Whether ``value`` is made of statistics of ``rows``, of which ``own`` are by their names."""
    parts = [value]
    if isinstance(value, ast.BinOp):  # a range, or a deviation and an epsilon
        parts = [side for side in (value.left, value.right) if not isinstance(side, ast.Constant)]
    return all(_is_statistic(part, rows) or written(part) in own for part in parts)


def _is_statistic(value: ast.expr, rows: str) -> bool:
    """Whether ``value`` is ``rows.mean(0)``, ``np.std(rows)`` or another over all of ``rows``."""
    if not isinstance(value, ast.Call) or called(value) not in _STATISTICS:
        return False
    of = value.func.value if isinstance(value.func, ast.Attribute) else None
    given = value.args[0] if value.args else None
    over_columns = any(_is_last_axis(node) for node in (*value.args, *_axes(value)))
    return rows in (written(of) if of else "", written(given) if given else "") and not over_columns


def _axes(call: ast.Call) -> list[ast.expr]:
    return [keyword.value for keyword in call.keywords if keyword.arg in ("axis", "dim")]


def _is_last_axis(node: ast.expr) -> bool:
    """Whether an axis other than the first is named: each row is then scaled by itself."""
    try:
        return isinstance(axis := ast.literal_eval(node), int) and axis != 0
    except ValueError:
        return not isinstance(node, ast.Name)


def _goes_with_held_out(user: ast.Call, made: ast.Call) -> bool:
    """Whether ``user`` is given held-out rows beside what was made, and no training rows."""
    others = [written(each) for each in user.args if each is not made]
    held_out = any(HELD_OUT.search(each) for each in others)
    return held_out and not any(TRAINING.search(each) for each in others)
