"""What a program's source gives to its metrics: decisions for scores, or labels for predictions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nnaudit.targets.source import Source, called, written

_OF_SCORES = re.compile(
    r"^(roc_auc_score|average_precision_score|precision_recall_curve|roc_curve)$"
)
"""Functions of scikit-learn that rank rows by a score: (labels, scores)."""

_UNEVEN = re.compile(
    r"^(precision_score|recall_score|r2_score|roc_auc_score|average_precision_score|fbeta_score"
    r"|balanced_accuracy_score|precision_recall_fscore_support|classification_report)$"
)
"""Functions of scikit-learn whose value changes when labels and predictions change places."""

_LABELS = re.compile(r"(^|[^a-z])(y|yb|ys|truth|true|labels?|targets?|gt|actual)([^a-z]|$)", re.I)
_PREDICTIONS = re.compile(r"pred|prob|logit|score|output|guess|hat([^a-z]|$)", re.I)

_THROUGH = frozenset(
    {
        "array", "asarray", "astype", "cat", "concat", "concatenate", "contiguous", "cpu",
        "detach", "double", "extend", "flatten", "float", "hstack", "int", "item", "list", "long",
        "numpy", "ravel", "reshape", "squeeze", "stack", "tensor", "to", "tolist", "view",
    }
)  # fmt: skip
"""Calls that leave decisions decisions, and scores scores."""

_MODULES = frozenset({"np", "numpy", "torch", "jnp"})
_DECIDES = frozenset({"argmax", "sign"})

_CLASSIFIER = re.compile(r"Classifier(CV)?$|^LogisticRegression|SVC$|NB$|DiscriminantAnalysis$")
"""Classes of scikit-learn and skorch whose ``predict`` gives classes; that of a regressor, of a
booster or of a program's own class may well give scores."""


@dataclass(frozen=True)
class Misgiven:
    """A call of a metric that is given the wrong thing.

    Attributes:
        metric: the function's name.
        swapped: labels and predictions have changed places; else decisions stand for scores.
        given: what is given for predictions or scores, as it is written.
        line: of the call.
    """

    metric: str
    swapped: bool
    given: str
    line: int


def misgiven(source: Source) -> tuple[Misgiven, ...]:
    """Return the calls of scikit-learn's metrics in ``source`` that are given the wrong thing.

    A value is followed through the names of its function, and through lists that it is appended
    to. It is a decision if every value that the name is given there is one: ``argmax``, ``round``,
    a comparison with a number. Where one value is not understood nothing is said. Labels may be
    such decisions, too (``one_hot.argmax(1)``): they have changed places only where the other
    argument is named as labels are.
    """
    own = {
        alias.asname or alias.name
        for node in source.find(ast.ImportFrom)
        if (node.module or "").startswith("sklearn")
        for alias in node.names
    }
    found = []
    for call in source.find(ast.Call):
        named = isinstance(call.func, ast.Name) and call.func.id in own
        dotted = isinstance(call.func, ast.Attribute) and written(call.func.value) in (
            own | {"sklearn.metrics"}
        )
        first, second = _arguments(call)
        if not (named or dotted) or first is None or second is None:
            continue
        values = _Values(source, call)
        decisions = values.are_decisions(second), values.are_decisions(first)
        name = called(call)
        if _UNEVEN.match(name) and decisions == (False, True) and _are_labels(second, first):
            found.append(Misgiven(name, True, written(first), call.lineno))
        elif _OF_SCORES.match(name) and decisions == (True, False):
            found.append(Misgiven(name, False, written(second), call.lineno))
    return tuple(found)


def _are_labels(value: ast.expr, others: ast.expr) -> bool:
    """Whether ``value`` is named as labels are, and ``others`` are not: these may be argmaxed."""
    names = written(value), written(others)
    labels, stranger = (bool(_LABELS.search(n) and not _PREDICTIONS.search(n)) for n in names)
    return labels and not stranger


def _arguments(call: ast.Call) -> tuple[ast.expr | None, ast.expr | None]:
    """Return labels and predictions of a call, as scikit-learn takes them."""
    by_name = {keyword.arg: keyword.value for keyword in call.keywords}
    first = call.args[0] if call.args else by_name.get("y_true")
    second = call.args[1] if len(call.args) > 1 else by_name.get("y_score", by_name.get("y_pred"))
    return first, second


class _Values:
    """What the names in the function around a call are given."""

    def __init__(self, source: Source, call: ast.Call) -> None:
        self._given: dict[str, list[ast.expr]] = {}
        self._asked: list[str] = []
        for node in ast.walk(source.scope_of(call)):
            for name, value in _gives(node):
                self._given.setdefault(name, []).append(value)

    def are_decisions(self, value: ast.expr) -> bool:
        """Whether ``value`` holds nothing but classes that were decided for."""
        return self._judged(value) is True

    def _judged(self, value: ast.expr) -> bool | None:
        """Return whether they are decisions; None for a name that is being asked about.

        What is made of the name itself (``p = torch.cat(p)``) depends on what else it is given.
        """
        if isinstance(value, ast.Compare):
            return len(value.ops) == 1 and isinstance(value.comparators[0], ast.Constant)
        if isinstance(value, ast.Call):
            return self._of_call(value)
        if _is_index_of_max(value):
            return True
        name = written(value)
        if name in self._asked:
            return None
        self._asked.append(name)
        said = {self._judged(part) for part in self._parts(value) if not _is_empty(part)}
        self._asked.pop()
        return None if said == {None} else said <= {True, None} and True in said

    def _parts(self, value: ast.expr) -> list[ast.expr]:
        """Return what ``value`` is made of: what a name was given, the items of a list."""
        if isinstance(value, (ast.ListComp, ast.GeneratorExp)):
            return [value.elt]
        if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Mult, ast.Add)):
            # ``1 * (p > 0.5)``, ``decided + [...]``
            return [
                part for part in (value.left, value.right) if not isinstance(part, ast.Constant)
            ]
        return self._given.get(written(value), [])

    def _of_call(self, call: ast.Call) -> bool | None:
        name, method = called(call), call.func
        if name in _DECIDES:
            return True
        if name == "predict":
            return isinstance(method, ast.Attribute) and self._is_classifier(method.value)
        of_module = isinstance(method, ast.Name) or (
            isinstance(method, ast.Attribute) and written(method.value) in _MODULES
        )
        if name == "round":  # to whole numbers, not to so many digits
            return len(call.args) == int(of_module) and not call.keywords
        if name not in _THROUGH:
            return False
        if not of_module and isinstance(method, ast.Attribute):
            return self._judged(method.value)
        return self._judged(call.args[0]) if call.args else False

    def _is_classifier(self, value: ast.expr) -> bool:
        made = [value] if isinstance(value, ast.Call) else self._given.get(written(value), [])
        return bool(made) and all(_CLASSIFIER.search(_class_of(each)) for each in made)


def _class_of(made: ast.expr) -> str:
    """Return ``SVC`` of ``SVC(C=2)`` and of ``SVC(C=2).fit(x, y)``; nothing of anything else."""
    if not isinstance(made, ast.Call):
        return ""
    if called(made) == "fit" and isinstance(made.func, ast.Attribute):
        return _class_of(made.func.value)
    return called(made)


def _gives(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that ``node`` gives a value, or puts one into, with that value."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple):
                yield from _unpacked(target, node.value)
            else:
                yield written(target), node.value
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign)) and node.value is not None:
        yield written(node.target), node.value
    elif isinstance(node, (ast.For, ast.comprehension)):
        for each in ast.walk(node.target):
            if isinstance(each, ast.Name):
                yield each.id, node.iter
    elif (
        isinstance(node, ast.Call)
        and called(node) in ("append", "extend")
        and isinstance(node.func, ast.Attribute)
        and node.args
    ):
        yield written(node.func.value), node.args[0]


def _unpacked(target: ast.Tuple, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield names and values of ``a, b = c, d``; of ``_, index = x.max(1)`` the index."""
    if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
        for name, each in zip(target.elts, value.elts, strict=True):
            yield written(name), each
    elif isinstance(value, ast.Call) and called(value) in ("max", "topk") and len(target.elts) == 2:
        yield written(target.elts[0]), value
        yield written(target.elts[1]), ast.Attribute(value, "indices", ast.Load())
    else:
        for name in target.elts:
            yield written(name), value


def _is_index_of_max(value: ast.expr) -> bool:
    """Whether ``value`` is ``x.max(1)[1]`` or ``x.max(1).indices``."""
    inner = value.value if isinstance(value, (ast.Attribute, ast.Subscript)) else None
    if not isinstance(inner, ast.Call) or called(inner) != "max":
        return False
    if isinstance(value, ast.Attribute):
        return value.attr == "indices"
    index = value.slice if isinstance(value, ast.Subscript) else None
    return isinstance(index, ast.Constant) and index.value == 1


def _is_empty(value: ast.expr) -> bool:
    return isinstance(value, (ast.List, ast.Tuple)) and not value.elts
