"""How a program's source computes its metrics, and which network it keeps by them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nnaudit.measure.metric_names import better_when_higher
from nnaudit.targets.definitions import imports_any
from nnaudit.targets.source import Source, called, written

_SAVES = re.compile(r"save|state_dict|deepcopy", re.IGNORECASE)

_NO_MEAN = re.compile(
    r"(^|_)(f1_score|fbeta_score|roc_auc_score|auroc|average_precision(_score)?|precision_score"
    r"|recall_score|jaccard_(score|index)|matthews_corrcoef|cohen_kappa(_score)?|r2_score"
    r"|balanced_accuracy_score|pearson_corrcoef|spearman_corrcoef|pearsonr|spearmanr|bleu_score)$"
)
"""Functions whose value on all rows is not the mean of their values on parts of them."""

_LOADER = re.compile(r"loader|(^|_)dl\b|batches", re.IGNORECASE)
_STEPS = frozenset({"validation_step", "test_step"})


@dataclass(frozen=True)
class WrongChoice:
    """The worst network is kept for the best.

    Attributes:
        metric: what is compared.
        highest: the highest value is kept, of what is to be low; else the lowest of the other.
        line: of the comparison, or of the call that sets the direction.
    """

    metric: str
    highest: bool
    line: int


@dataclass(frozen=True)
class BatchMean:
    """A metric that is computed on each batch and averaged over these.

    Attributes:
        metric: the function, or the sum of hits that is divided by the number of batches.
        loader: what the batches come from, as it is written; empty where a framework iterates.
        hits: whether it is such a sum.
        line: where it is computed.
    """

    metric: str
    loader: str
    hits: bool
    line: int


# --- the best -------------------------------------------------------------------------------------


def wrong_choices(source: Source) -> tuple[WrongChoice, ...]:
    """Return where ``source`` keeps the highest loss or the lowest accuracy for the best.

    A comparison counts where the name of its other side says "best", that side is set to the
    metric, and a network is saved or copied then.
    """
    found = [
        choice
        for node in source.find(ast.If)
        if _SAVES.search(" ".join(called(c) for c in _calls(node.body)))
        for choice in _of_test(node)
    ]
    lightning = imports_any(source.tree, ("lightning", "pytorch_lightning"))
    found += [
        choice
        for call in source.find(ast.Call)
        if (choice := _of_call(call, lightning)) is not None
    ]
    return tuple(found)


def _of_test(node: ast.If) -> Iterator[WrongChoice]:
    set_to = {
        written(target): written(statement.value)
        for kept in node.body
        for statement in ast.walk(kept)
        if isinstance(statement, ast.Assign)
        for target in statement.targets
    }
    parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
    for test in parts:
        if not isinstance(test, ast.Compare) or len(test.ops) != 1:
            continue
        left, right = written(test.left), written(test.comparators[0])
        for metric, best, above in ((left, right, True), (right, left, False)):
            rises = isinstance(test.ops[0], (ast.Gt, ast.GtE)) is above
            known = isinstance(test.ops[0], (ast.Gt, ast.GtE, ast.Lt, ast.LtE))
            kept = set_to.get(best) == metric and "best" in best.lower()
            if known and kept and better_when_higher(f"{metric} {best}") is (not rises):
                yield WrongChoice(metric, rises, test.lineno)


def _of_call(call: ast.Call, lightning: bool) -> WrongChoice | None:
    """Read the direction of a framework's callback: ``monitor="val_loss", mode="max"``."""
    given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    metric = given.get("monitor") or given.get("metric_for_best_model")
    highest = {"max": True, "min": False}.get(str(given.get("mode")))
    if isinstance(given.get("greater_is_better"), bool):
        highest = bool(given["greater_is_better"])
    named = {keyword.arg for keyword in call.keywords}
    if lightning and called(call) in ("EarlyStopping", "ModelCheckpoint") and "mode" not in named:
        highest = False
    if (
        not isinstance(metric, str)
        or highest is None
        or better_when_higher(metric) is not (not highest)
    ):
        return None
    return WrongChoice(metric, highest, call.lineno)


def _calls(nodes: list[ast.stmt]) -> list[ast.Call]:
    return [each for node in nodes for each in ast.walk(node) if isinstance(each, ast.Call)]


# --- over batches ---------------------------------------------------------------------------------


def batch_means(source: Source) -> tuple[BatchMean, ...]:
    """Return the metrics of ``source`` that are means over batches and should not be.

    Functions such as F1 whose results are gathered in a loop over a loader, or logged in a
    validation step of Lightning; and hits that are summed in such a loop and divided by ``len`` of
    the loader, the number of batches.
    """
    found = [
        BatchMean(called(call), "", False, call.lineno)
        for function in source.find(ast.FunctionDef)
        if function.name in _STEPS
        for log in _calls(function.body)
        if called(log) in ("log", "log_dict")
        for call in ast.walk(log)
        if isinstance(call, ast.Call) and _NO_MEAN.search(called(call))
    ]
    divisions = [
        node
        for node in source.find(ast.BinOp)
        if isinstance(node.op, ast.Div) and written(node.right).startswith("len(")
    ]
    for loop in source.find(ast.For):
        over = written(loop.iter)
        if not _LOADER.search(over) or over.startswith("range("):
            continue
        for value in _gathered(loop):
            names = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
            made = [value, *(v for name, v in _made(loop) if name in names)]
            found += [
                BatchMean(called(call), over, False, call.lineno)
                for each in made
                for call in ast.walk(each)
                if isinstance(call, ast.Call) and _NO_MEAN.search(called(call))
            ]
        for name in _hits(loop):
            for division in divisions:
                inside = {n.id for n in ast.walk(division.left) if isinstance(n, ast.Name)}
                loader = written(division.right)[len("len(") : -1]
                same = re.search(rf"(?<![\w.]){re.escape(loader)}(?![\w.])", over)
                if name in inside and same and _is_whole(source, division):
                    found.append(BatchMean(name, loader, True, division.lineno))
    return tuple(found)


def _gathered(loop: ast.For) -> Iterator[ast.expr]:
    """Yield what is added up, or appended, in ``loop``."""
    for node in ast.walk(loop):
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            yield node.value
        elif isinstance(node, ast.Call) and called(node) in ("append", "update") and node.args:
            yield node.args[0]


def _made(loop: ast.For) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(loop):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _hits(loop: ast.For) -> Iterator[str]:
    """Yield the names in which ``loop`` counts equal predictions: ``hits += (a == b).sum()``."""
    for node in ast.walk(loop):
        if not isinstance(node, ast.AugAssign) or not isinstance(node.op, ast.Add):
            continue
        inside = list(ast.walk(node.value))
        counts = any(isinstance(n, ast.Call) and called(n) == "sum" for n in inside)
        compares = any(isinstance(n, ast.Eq) for n in inside) or any(
            isinstance(n, ast.Call) and called(n) == "eq" for n in inside
        )
        divides = any(isinstance(n, ast.Div) for n in inside) or any(
            isinstance(n, ast.Call) and called(n) == "mean" for n in inside
        )
        if counts and compares and not divides and isinstance(node.target, ast.Name):
            yield node.target.id


def _is_whole(source: Source, division: ast.BinOp) -> bool:
    """Whether nothing else is divided by: ``hits / len(loader) / batch_size`` is right."""
    parent = next(source.ancestors(division), None)
    return not (isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Div))
