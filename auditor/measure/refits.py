"""Encoders and scalers that a program's source fits again, to held-out rows."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from nnaudit.measure.early_fits import BY_INPUTS, BY_TARGET
from nnaudit.targets.source import Source, called, written

_KINDS = (
    BY_TARGET
    | BY_INPUTS
    | {"LabelBinarizer", "LabelEncoder", "MultiLabelBinarizer", "OneHotEncoder", "OrdinalEncoder"}
)
"""Classes of scikit-learn whose result depends on the rows that they were fitted to."""

_HELD_OUT = re.compile(r"(^|[^a-z])(val|valid|validation|test|dev|holdout)([^a-z]|$)", re.I)
_TRAINING = re.compile(r"(^|[^a-z])(train|training|tr)([^a-z]|$)", re.I)


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
    for call in source.find(ast.Call):
        if called(call) not in ("fit", "fit_transform") or not call.args:
            continue
        of = call.func.value if isinstance(call.func, ast.Attribute) else call
        kind = called(of) if isinstance(of, ast.Call) else kinds.get(written(of), "")
        rows = written(call.args[0])
        if kind not in _KINDS or bool(_TRAINING.search(rows)) is bool(_HELD_OUT.search(rows)):
            continue
        if _TRAINING.search(rows):
            training.setdefault(kind, call.lineno)
        else:
            held_out.append((kind, rows, call.lineno))
    return tuple(
        Refit(kind, rows, line, training[kind]) for kind, rows, line in held_out if kind in training
    )
