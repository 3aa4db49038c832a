"""Encoders and scalers that a program's source fits again, to held-out rows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from nnaudit.measure.early_fits import BY_INPUTS, BY_TARGET, HELD_OUT, TRAINING
from nnaudit.targets.source import Source, called, written

_KINDS = (
    BY_TARGET
    | BY_INPUTS
    | {"LabelBinarizer", "LabelEncoder", "MultiLabelBinarizer", "OneHotEncoder", "OrdinalEncoder"}
)
"""Classes of scikit-learn whose result depends on the rows that they were fitted to."""

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

    A class counts that is fitted to rows named as training rows, too: each set then has numbers
    of its own for the same thing. A fit to both (``pd.concat([train, test])``) is none.
    """
    kinds = {
        written(target): called(node.value)
        for node in source.find(ast.Assign)
        if isinstance(node.value, ast.Call) and called(node.value) in _KINDS
        for target in node.targets
    }
    training: dict[str, int] = {}
    held_out: list[tuple[str, str, int]] = []
    for kind, rows, line in (*_fits(source, kinds), *_codes(source)):
        if bool(TRAINING.search(rows)) is bool(HELD_OUT.search(rows)):
            continue
        if TRAINING.search(rows):
            training.setdefault(kind, line)
        else:
            held_out.append((kind, rows, line))
    return tuple(
        Refit(kind, rows, line, training[kind]) for kind, rows, line in held_out if kind in training
    )


def _fits(source: Source, kinds: dict[str, str]) -> Iterator[tuple[str, str, int]]:
    """Yield class, rows and line of each fit of one of :data:`_KINDS`."""
    for call in source.find(ast.Call):
        if called(call) not in ("fit", "fit_transform") or not call.args:
            continue
        of = call.func.value if isinstance(call.func, ast.Attribute) else call
        kind = called(of) if isinstance(of, ast.Call) else kinds.get(written(of), "")
        if kind in _KINDS:
            yield kind, written(call.args[0]), call.lineno


def _codes(source: Source) -> Iterator[tuple[str, str, int]]:
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
                yield CATEGORICAL, written(made.func.value), node.lineno
        elif called(made) == "Categorical" and len(made.args) == 1:
            yield CATEGORICAL, written(made.args[0]), node.lineno
