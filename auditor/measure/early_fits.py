"""Preprocessing that was fitted to all rows before these were split, as the source shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from nnaudit.targets.source import Source, called

BY_TARGET = frozenset(
    {
        "LinearDiscriminantAnalysis", "PLSRegression", "RFE", "RFECV", "SelectFdr", "SelectFpr",
        "SelectFromModel", "SelectFwe", "SelectKBest", "SelectPercentile",
        "SequentialFeatureSelector", "TargetEncoder",
    }
)  # fmt: skip
"""Classes of scikit-learn that look at the targets when they are fitted."""

BY_INPUTS = frozenset(
    {
        "CountVectorizer", "IterativeImputer", "KBinsDiscretizer", "KNNImputer", "MaxAbsScaler",
        "MinMaxScaler", "PCA", "PowerTransformer", "QuantileTransformer",
        "RobustScaler", "SimpleImputer", "StandardScaler", "TfidfVectorizer", "TruncatedSVD",
        "VarianceThreshold",
    }
)  # fmt: skip
"""Those that look at the inputs alone."""

SCORES = frozenset(
    {
        "chi2", "f_classif", "f_regression", "mutual_info_classif", "mutual_info_regression",
        "r_regression",
    }
)  # fmt: skip
"""Functions of scikit-learn's that score each column by the targets, its second argument."""

CORRELATIONS = frozenset({"corrcoef", "corrwith", "pearsonr", "pointbiserialr", "spearmanr"})
"""Functions that do so where the second argument is the targets, as its name says."""

HELD_OUT = re.compile(r"(^|[^a-z])(val|valid|validation|test|dev|holdout)([^a-z]|$)", re.I)
TRAINING = re.compile(r"(^|[^a-z])(train|training|tr)([^a-z]|$)", re.I)
"""Names of the rows of one set: ``x_val``, ``test_df``, ``X_train``."""

_TARGETS = re.compile(r"(^|[^a-z])(y|ys|target|targets|label|labels|outcome)([^a-z]|$)", re.I)

_SPLITS = frozenset({"train_test_split", "random_split"})


@dataclass(frozen=True)
class EarlyFit:
    """One fit whose rows are split afterwards.

    Attributes:
        kind: the class that is fitted.
        by_target: it is given the targets, and makes use of them.
        line: of the fit; ``split`` is that of the split.
    """

    kind: str
    by_target: bool
    line: int
    split: int


_TRANSFORMS = frozenset({"fit_transform", "get_support", "transform"})


@dataclass
class _Fit:
    """A fit, followed from statement to statement.

    Attributes:
        rows: names of what was fitted to, and of what has been made of it since.
        results: names of what was transformed, and of what has been made of that.
        transformer: the name of what was fitted; empty where it has none.
        splits: lines that split the rows, which count if the transformed ones are used later.
        scores: it is no transformer but a function that scores columns: names of the scores, and
            of what has been made of them. Columns that are chosen by them are results.
    """

    kind: str
    by_target: bool
    node: ast.Call
    rows: set[str]
    results: set[str] = field(default_factory=set)
    transformer: str = ""
    splits: list[int] = field(default_factory=list)
    scores: set[str] | None = None

    def follow(self, statement: ast.stmt, assigned: set[str]) -> None:
        """Note what ``statement`` makes of the rows, and of the transformed ones."""
        value = getattr(statement, "value", None)
        if value is None:
            return
        nodes = list(ast.walk(value))
        if self.node in nodes and called(self.node) == "fit" and len(assigned) == 1:
            (self.transformer,) = assigned
        result = self.is_result(value)
        if self.scores is not None:
            scored = self.node in nodes or _mentions(value, self.scores)
            self.scores = (
                self.scores | assigned if scored and not result else self.scores - assigned
            )
        self.rows = self.rows | assigned if _mentions(value, self.rows) else self.rows - assigned
        self.results = self.results | assigned if result else self.results - assigned

    def is_result(self, value: ast.expr) -> bool:
        """Whether ``value`` has something of the transformed rows in it, or of chosen columns."""
        if self.scores is not None:
            return _mentions(value, self.results) or self._chooses(value)
        return _mentions(value, self.results) or any(
            called(call) in _TRANSFORMS
            and (call is self.node or self.transformer == _receiver(call) != "")
            for call in ast.walk(value)
            if isinstance(call, ast.Call)
        )

    def _chooses(self, value: ast.expr) -> bool:
        """Whether ``value`` takes elements by the scores, of anything but these themselves."""
        scores = self.scores or set()
        return any(
            isinstance(node, ast.Subscript)
            and (_mentions(node.slice, scores) or self.node in ast.walk(node.slice))
            and not _mentions(node.value, scores)
            for node in ast.walk(value)
        )


def early_fits(source: Source) -> tuple[EarlyFit, ...]:
    """Return the fits of ``source`` to rows that a later line of the same function splits.

    Names are followed: what is made of the rows is of the rows, and a name that is given something
    else is not any more. A split is one of scikit-learn's or torch's, or rows that are sliced and
    named as training or held-out ones are (``x_train, x_val = x[:800], x[800:]``). A fit whose
    transformed rows are neither split nor used after the split, as for a plot, is none.
    """
    found: list[EarlyFit] = []
    for scope in (source.tree, *source.find(ast.FunctionDef)):
        fits: list[_Fit] = []
        made: dict[str, str] = {}
        for statement in _statements(scope):
            calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
            assigned = _assigned(statement)
            for fit in fits:
                if fit.splits and fit.is_result(_whole(statement)):
                    found += [_early(fit, line) for line in fit.splits]
                    fit.splits.clear()
            fits += [new for call in calls if (new := _fit(call, made)) is not None]
            for parts in _split_by(statement, calls, assigned):
                for fit in fits:
                    if any(map(fit.is_result, parts)):
                        found.append(_early(fit, statement.lineno))
                    elif _mentions(parts[0], fit.rows):
                        fit.splits.append(statement.lineno)
            for fit in fits:
                fit.follow(statement, assigned)
            made.update(_transformers(statement, assigned))
    return tuple(dict.fromkeys(found))


def _split_by(
    statement: ast.stmt, calls: list[ast.Call], assigned: set[str]
) -> Iterator[list[ast.expr]]:
    """Yield what ``statement`` splits: the arguments of a call, or names whose rows it slices."""
    yield from (call.args for call in calls if called(call) in _SPLITS and call.args)
    if any(TRAINING.search(name) or HELD_OUT.search(name) for name in assigned):
        for node in ast.walk(statement):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                whole = node.value
                while isinstance(whole, ast.Attribute):  # .iloc, .values
                    whole = whole.value
                if isinstance(whole, ast.Name) and not _takes_columns(node.slice):
                    yield [whole]


def _early(fit: _Fit, split: int) -> EarlyFit:
    return EarlyFit(fit.kind, fit.by_target, fit.node.lineno, split)


def _whole(statement: ast.stmt) -> ast.expr:
    """Return what ``statement`` computes; an empty tuple for nothing."""
    value = getattr(statement, "value", None)
    return value if isinstance(value, ast.expr) else ast.Tuple([], ast.Load())


def _statements(scope: ast.AST) -> Iterator[ast.stmt]:
    """Yield the simple statements of ``scope`` in order, those within functions left out."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if isinstance(child, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)):
            yield child
        elif isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from _statements(child)


def _fit(call: ast.Call, made: dict[str, str]) -> _Fit | None:
    if called(call) in SCORES | CORRELATIONS:
        return _score(call)
    if called(call) not in ("fit", "fit_transform") or not isinstance(call.func, ast.Attribute):
        return None
    receiver = call.func.value
    kind = called(receiver) if isinstance(receiver, ast.Call) else ""
    if isinstance(receiver, ast.Name):
        kind = made.get(receiver.id, "")
    rows = _rows(call.args[0]) if call.args else ""
    if kind not in BY_TARGET | BY_INPUTS or not rows:
        return None
    given = len(call.args) + sum(keyword.arg == "y" for keyword in call.keywords)
    return _Fit(kind, kind in BY_TARGET and given > 1, call, {rows}, transformer=_receiver(call))


def _score(call: ast.Call) -> _Fit | None:
    """Return the scoring of all columns of a table by the targets of all rows."""
    given = list(call.args)
    if called(call) == "corrwith" and isinstance(call.func, ast.Attribute):
        given.insert(0, call.func.value)
    names = [_rows(each) for each in given[:2]]
    if len(names) < 2 or not all(names):
        return None
    if called(call) in CORRELATIONS and not _TARGETS.search(names[1]):
        return None
    return _Fit(called(call), True, call, {names[0]}, scores=set())


def _receiver(call: ast.Call) -> str:
    """Return the name before the dot of a call; empty where that is no name."""
    value = call.func.value if isinstance(call.func, ast.Attribute) else None
    return value.id if isinstance(value, ast.Name) else ""


def _rows(node: ast.expr) -> str:
    """Return the name of the table that all rows of ``node`` are of; empty for some of its rows."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Subscript) and not _takes_columns(node.slice):
            return ""
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _takes_columns(index: ast.expr) -> bool:
    """Whether all rows are taken: ``["age"]``, ``[["age", "sex"]]``, ``[:, 1:]``."""
    if isinstance(index, ast.Tuple) and index.elts:
        rows = index.elts[0]
        return isinstance(rows, ast.Slice) and rows.lower is rows.upper is None
    names = index.elts if isinstance(index, ast.List) else [index]
    return all(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in names)


def _mentions(value: ast.expr, names: set[str]) -> bool:
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(value))


def _assigned(statement: ast.stmt) -> set[str]:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        targets = [statement.target]
    nodes = (node for target in targets for node in ast.walk(target))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _transformers(statement: ast.stmt, assigned: set[str]) -> dict[str, str]:
    """Return the names that an instance of a known class is assigned to, with the class."""
    value = getattr(statement, "value", None)
    while isinstance(value, ast.Call) and called(value) not in BY_TARGET | BY_INPUTS:
        value = value.func.value if isinstance(value.func, ast.Attribute) else None
    return dict.fromkeys(assigned, called(value)) if isinstance(value, ast.Call) else {}
