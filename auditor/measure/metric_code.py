"""How a program's source computes its metrics, and which network it keeps by them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nnaudit.measure.early_fits import HELD_OUT
from nnaudit.measure.metric_names import better_when_higher
from nnaudit.targets.imports import imports_any
from nnaudit.targets.source import Source, assigned, called, written

_SAVES = re.compile(r"save|state_dict|deepcopy", re.IGNORECASE)

_NO_MEAN = re.compile(
    r"(^|_)(f1_score|fbeta_score|roc_auc_score|auroc|average_precision(_score)?|precision_score"
    r"|recall_score|jaccard_(score|index)|matthews_corrcoef|cohen_kappa(_score)?|r2_score"
    r"|balanced_accuracy_score|pearson_corrcoef|spearman_corrcoef|pearsonr|spearmanr|bleu_score)$"
)
"""Functions whose value on all rows is not the mean of their values on parts of them."""

_ENDS = (ast.Break, ast.Return, ast.Raise)

_HUGE = 100
"""A number from here on is an infinity to begin a search for the lowest with; 100 per cent is one
for the highest."""

_INFINITE = re.compile(r"float\(['\"][+-]?inf(inity)?['\"]\)$", re.IGNORECASE)

_OWN = re.compile(r"^(compute_|calc_|calculate_|get_|binary_|macro_|micro_)?(f1|auc|r2|mcc)$")
"""Such functions of the user's own, by their names."""

_OBJECTS = re.compile(
    r"^(Binary|Multiclass|Multilabel)?(F1Score|FBetaScore|AUROC|AveragePrecision|CohenKappa"
    r"|MatthewsCorrCoef|R2Score|JaccardIndex|Precision|Recall|PearsonCorrCoef|SpearmanCorrCoef"
    r"|Perplexity|BLEUScore)$"
)
"""Classes of torchmetrics whose value on all rows is not the mean of those on parts of them."""

_PERPLEXITY = re.compile(r"(^|_)(ppl|perplexity)(_|$)", re.IGNORECASE)

_LOADER = re.compile(r"loader(?!s)|(^|_)dl(_|$)|batches", re.IGNORECASE)
"""Names of what yields batches."""

_LOADERS = re.compile(r"loaders|(^|_)dls(_|$)", re.IGNORECASE)
"""Names of several such: a loop over them is one over data sets, folds or phases."""

_BY_ROW = re.compile(r"len\(|size|shape|batch")
"""What the bound of a ``range`` over the rows of a batch is written with."""

_STEPS = frozenset({"validation_step", "test_step"})

_EPOCH_END = re.compile(r"(on_)?(train|validation|test)_epoch_end$")
"""Methods that Lightning calls when an epoch is over."""


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
class StaleBest:
    """A network is saved whenever a metric beats the best so far, which nothing ever raises.

    Attributes:
        metric: what is compared.
        best: what it is compared with.
        line: of the comparison.
    """

    metric: str
    best: str
    line: int


@dataclass(frozen=True)
class BatchMean:
    """A metric that is computed on each batch and averaged over these.

    Attributes:
        metric: the function, or the sum of hits that is divided by the number of batches.
        loader: what the batches come from, as it is written; empty where a framework iterates.
        hits: whether it is such a sum.
        line: where it is computed.
        exponential: whether it is a sum of exponentials of losses, as of perplexities.
    """

    metric: str
    loader: str
    hits: bool
    line: int
    exponential: bool = False


@dataclass(frozen=True)
class LastBatch:
    """A metric that is set anew with every batch, and read when the loop is over.

    Attributes:
        metric: the variable.
        loader: what the batches come from, as it is written.
        line: where it is set.
    """

    metric: str
    loader: str
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
        for choice in _of_test(source, node)
    ]
    lightning = imports_any(source.tree, ("lightning", "pytorch_lightning"))
    found += [
        choice
        for call in source.find(ast.Call)
        if (choice := _of_call(call, lightning)) is not None
    ]
    return tuple(found)


def stale_bests(source: Source) -> Iterator[StaleBest]:
    """Yield where a network is saved whenever a metric beats a "best" that nothing raises.

    The best is a variable, or an attribute, that holds nothing but what every first value beats, or
    what a checkpoint kept of it. Conditions that end their loop (a goal that is reached) are none,
    nor are names that something else may set: parameters, and what ``setattr`` is given.
    """
    values = _values_by_name(source)
    elsewhere = {arg.arg for arg in source.find(ast.arg)} | set(_set_by_name(source))
    for node in source.find(ast.If):
        ends = any(isinstance(n, _ENDS) for each in node.body for n in ast.walk(each))
        if ends or not _SAVES.search(" ".join(called(c) for c in _calls(node.body))):
            continue
        for metric, best, _ in _comparisons(node):
            name = written(best)
            known = isinstance(best, (ast.Name, ast.Attribute)) and "best" in name.lower()
            given = values.get(name, [])
            if not known or name.rpartition(".")[2] in elsewhere:
                continue
            if not any(_is_worst(value) for value in given):
                continue
            if all(_is_worst(value) for value in given if not _is_restored(value, name)):
                yield StaleBest(written(metric), name, node.test.lineno)


def _values_by_name(source: Source) -> dict[str, list[ast.expr | None]]:
    """Return what ``source`` sets each variable and attribute to; None for no plain value."""
    found: dict[str, list[ast.expr | None]] = {}
    plain: set[int] = set()
    for node in source.find(ast.Assign):
        for each in node.targets:
            for target, value in assigned(each, node.value):
                if isinstance(target, (ast.Name, ast.Attribute)):
                    plain.add(id(target))
                    found.setdefault(written(target), []).append(value)
    names: list[ast.Name | ast.Attribute] = [*source.find(ast.Name), *source.find(ast.Attribute)]
    for name in names:
        if isinstance(name.ctx, ast.Store) and id(name) not in plain:
            found.setdefault(written(name), []).append(None)
    return found


def _set_by_name(source: Source) -> Iterator[str]:
    """Yield the strings that ``setattr`` is given."""
    for call in source.find(ast.Call):
        if called(call) == "setattr":
            yield from (str(a.value) for a in call.args if isinstance(a, ast.Constant))


def _is_restored(value: ast.expr | None, name: str) -> bool:
    """Whether ``value`` is what a checkpoint holds of ``name`` itself, which is no better."""
    last = name.rpartition(".")[2]
    return value is not None and any(
        isinstance(node, ast.Constant) and node.value == last for node in ast.walk(value)
    )


def _is_worst(value: ast.expr | None) -> bool:
    """Whether ``value`` is one that a search for the best begins with: 0, 1, infinity, 1e9."""
    if isinstance(value, ast.UnaryOp):
        return _is_worst(value.operand)
    if isinstance(value, ast.Constant):
        number = value.value
        return isinstance(number, (int, float)) and (number in (0, 1) or abs(number) >= _HUGE)
    text = written(value) if value is not None else ""
    return text.rpartition(".")[2] in ("inf", "infty", "maxsize") or bool(_INFINITE.match(text))


def _comparisons(node: ast.If) -> Iterator[tuple[ast.expr, ast.expr, bool]]:
    """Yield the two sides of each comparison of ``node``'s test, either way round, and the way.

    The last says whether the test is true where the first is the greater.
    """
    parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
    for test in parts:
        if not isinstance(test, ast.Compare) or len(test.ops) != 1:
            continue
        if isinstance(test.ops[0], (ast.Gt, ast.GtE, ast.Lt, ast.LtE)):
            greater = isinstance(test.ops[0], (ast.Gt, ast.GtE))
            yield test.left, test.comparators[0], greater
            yield test.comparators[0], test.left, not greater


def _of_test(source: Source, node: ast.If) -> Iterator[WrongChoice]:
    set_to = {
        written(target): written(value)
        for kept in node.body
        for statement in ast.walk(kept)
        if isinstance(statement, ast.Assign)
        for each in statement.targets
        for target, value in assigned(each, statement.value)
    }
    for compared, other, rises in _comparisons(node):
        metric, best = written(compared), written(other)
        kept = set_to.get(best) == metric and "best" in best.lower()
        if kept and _better_when_higher(source, metric, best) is (not rises):
            yield WrongChoice(metric, rises, compared.lineno)


def _better_when_higher(source: Source, metric: str, best: str) -> bool | None:
    """Return what the name of the metric says, else that of the best value, else its value.

    A name that is turned round (``-loss``) leaves it open, and so does what a loss divides.
    """
    said = better_when_higher(metric)
    said = better_when_higher(f"{metric} {best}") if said is None else said
    if said is not None or better_when_higher(f"{metric} loss") is None:
        return said
    made = {
        _said_by(value)
        for node in source.find(ast.Assign)
        for target in node.targets
        for name, value in assigned(target, node.value)
        if written(name) == metric
    }
    return made.pop() if len(made) == 1 else None


def _said_by(value: ast.expr) -> bool | None:
    """Return what an expression's words say of it, none of them being divided by."""
    below = (n.right for n in ast.walk(value) if isinstance(n, ast.BinOp) and _divides(n))
    if any(better_when_higher(written(each)) is not None for each in below):
        return None
    return better_when_higher(written(value))


def _divides(node: ast.BinOp) -> bool:
    return isinstance(node.op, ast.Div)


def _of_call(call: ast.Call, lightning: bool) -> WrongChoice | None:
    """Read the direction of a framework's callback: ``monitor="val_loss", mode="max"``.

    Transformers takes the highest of what does not end with "loss", where it is not told.
    """
    given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    if called(call) == "EarlyStopping" and call.args and isinstance(call.args[0], ast.Constant):
        given["monitor"] = call.args[0].value
    metric = given.get("monitor") or given.get("metric_for_best_model")
    highest = {"max": True, "min": False}.get(str(given.get("mode")))
    if isinstance(given.get("greater_is_better"), bool):
        highest = bool(given["greater_is_better"])
    named = {keyword.arg for keyword in call.keywords}
    by_trainer = "metric_for_best_model" in given and not {"greater_is_better", None} & named
    if by_trainer and called(call).endswith("TrainingArguments"):
        highest = not str(metric).endswith("loss")
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


# --- over epochs ---------------------------------------------------------------------------------


def unreset_metrics(source: Source) -> Iterator[tuple[str, int]]:
    """Yield metrics of torchmetrics that an epoch's end of Lightning computes and nothing resets.

    As they are written, with the line. Lightning resets a metric that it is given to log, and none
    whose value it is given. Where anything is reset whose name is not plain, nothing is known.
    """
    if not imports_any(source.tree, ("torchmetrics",)):
        return
    resets = {written(c.func.value) for c in _methods(source, "reset")}
    made = _made_once(source)
    logged = {
        written(each)
        for call in source.find(ast.Call)
        if called(call) in ("log", "log_dict")
        for each in ast.walk(call)
        if isinstance(each, ast.Attribute) and not _is_called_on(source, each)
    }
    if not resets <= made.keys():
        return
    for call in _methods(source, "compute"):
        name = written(call.func.value)
        function = source.scope_of(call)
        ends = isinstance(function, ast.FunctionDef) and _EPOCH_END.match(function.name)
        if ends and name in made and name not in resets | logged:
            yield name, call.lineno


def _methods(source: Source, name: str) -> Iterator[Any]:
    """Yield the calls of the method ``name`` of anything."""
    for call in source.find(ast.Call):
        if isinstance(call.func, ast.Attribute) and call.func.attr == name:
            yield call


def _made_once(source: Source) -> dict[str, int]:
    """Return the attributes that ``__init__`` alone sets to an object of torchmetrics', by line."""
    classes = {
        alias.asname or alias.name
        for node in source.find(ast.ImportFrom)
        if (node.module or "").partition(".")[0] == "torchmetrics"
        for alias in node.names
    }
    made: dict[str, int] = {}
    elsewhere: set[str] = set()
    for node in source.find(ast.Assign):
        for target, value in (pair for t in node.targets for pair in assigned(t, node.value)):
            function = source.scope_of(node)
            first = isinstance(function, ast.FunctionDef) and function.name == "__init__"
            of_library = isinstance(value, ast.Call) and (
                called(value) in classes or written(value.func).startswith("torchmetrics.")
            )
            if first and of_library:
                made[written(target)] = node.lineno
            else:
                elsewhere.add(written(target))
    return {name: line for name, line in made.items() if name not in elsewhere}


def _is_called_on(source: Source, node: ast.Attribute) -> bool:
    """Whether a method of ``node`` is looked up: ``node.compute``."""
    return isinstance(next(source.ancestors(node), None), ast.Attribute)


# --- over batches ---------------------------------------------------------------------------------


def batch_means(source: Source) -> tuple[BatchMean, ...]:
    """Return the metrics of ``source`` that are means over batches and should not be.

    Functions such as F1 whose results are gathered in a loop over a loader, or logged in a
    validation step of Lightning, where logging the value of a metric object does the same;
    exponentials of losses that are summed for a perplexity; and hits that are summed in such a
    loop and divided by ``len`` of the loader, the number of batches, or given to a meter without
    their number.
    """
    return (
        *_logged(source),
        *(mean for loop in _over_batches(source) for mean in _in_loop(source, loop)),
        *_in_sums(source),
    )


def last_batches(source: Source) -> Iterator[LastBatch]:
    """Yield hits that a loop over batches sets with each, and that are read only after it.

    Only where the text says that the loop evaluates: in one that trains, itself or by a function,
    the last batch's may be shown. Nor in one that is left early.
    """
    for loop in _over_batches(source):
        inside = list(ast.walk(loop))
        trains = any(isinstance(n, ast.Attribute) and n.attr == "backward" for n in inside)
        early = any(isinstance(n, (ast.Break, ast.Return)) for n in inside)
        if trains or early or not _evaluates(source, loop):
            continue
        names = {id(n) for n in inside}
        kept = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        kept |= {written(n.target) for n in inside if isinstance(n, ast.AugAssign)}
        later = {
            n.id
            for n in ast.walk(source.scope_of(loop))
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and id(n) not in names
            if n.lineno > (loop.end_lineno or loop.lineno)
        }
        for node in inside:
            if not isinstance(node, ast.Assign) or not _compares(node.value):
                continue
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id in later - kept:
                    yield LastBatch(target.id, written(loop.iter), node.lineno)


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef)

_WITHOUT_GRADIENTS = re.compile(r"no_grad|inference_mode")


def _evaluates(source: Source, loop: ast.For) -> bool:
    """Whether ``loop`` goes over held-out rows by its name, or is without gradients."""
    around = list(source.ancestors(loop))
    said = [
        written(item.context_expr) for w in around if isinstance(w, ast.With) for item in w.items
    ]
    said += [written(d) for f in around if isinstance(f, _SCOPES) for d in f.decorator_list]
    held_out = HELD_OUT.search(written(loop.iter)) is not None
    return held_out or any(map(_WITHOUT_GRADIENTS.search, said))


def _compares(value: ast.expr) -> bool:
    """Whether ``value`` is a number, or a share, of equal predictions."""
    inside = list(ast.walk(value))
    names = {called(n) for n in inside if isinstance(n, ast.Call)}
    compares = "eq" in names or any(isinstance(n, ast.Eq) for n in inside)
    return compares and not names.isdisjoint({"sum", "mean"})


def _over_batches(source: Source) -> Iterator[ast.For]:
    return (loop for loop in source.find(ast.For) if any(_loaders(loop.iter)))


def _loaders(node: ast.expr) -> Iterator[str]:
    """Yield the loaders, as they are written, whose batches a loop over ``node`` gets.

    Those by their name, one of several (``loaders["val"]``), one that is made there
    (``DataLoader(rows, 64)``), and those in a call that hands batches on (``tqdm(loader)``). A
    loader's data set is none, and so are several loaders.
    """
    if isinstance(node, (ast.Name, ast.Attribute)):
        if _LOADER.search(_last_name(node)):
            yield written(node)
    elif isinstance(node, ast.Subscript):
        name = _last_name(node.value)
        if _LOADER.search(name) or _LOADERS.search(name):
            yield written(node)
    elif isinstance(node, ast.Call) and called(node) not in ("range", "len"):
        if _LOADER.search(called(node)):
            yield written(node)
            return
        inside = [*node.args]
        if isinstance(node.func, ast.Attribute):
            inside.append(node.func.value)
        for each in inside:
            yield from _loaders(each)


def _last_name(node: ast.expr) -> str:
    """Return ``c`` of ``a.b.c``."""
    return written(node).rpartition(".")[2]


def _logged(source: Source) -> Iterator[BatchMean]:
    """Yield the metrics of one batch that a validation step of Lightning logs."""
    objects = _metric_objects(source)
    for function in source.find(ast.FunctionDef):
        if function.name not in _STEPS:
            continue
        for log in _calls(function.body):
            if called(log) not in ("log", "log_dict"):
                continue
            for call in _behind(log, function):
                if _has_no_mean(call) or written(call.func) in objects:
                    yield BatchMean(called(call), "", False, call.lineno)


def _metric_objects(source: Source) -> set[str]:
    """Return the names that hold an object of torchmetrics: ``self.f1``."""
    return {
        written(target)
        for node in source.find(ast.Assign)
        if isinstance(node.value, ast.Call) and _OBJECTS.match(called(node.value))
        for target in node.targets
    }


def _in_loop(source: Source, loop: ast.For) -> Iterator[BatchMean]:
    over = written(loop.iter)
    for value in _gathered(loop):
        for call in _behind(value, loop):
            if _has_no_mean(call):
                yield BatchMean(called(call), over, False, call.lineno)
    for node in ast.walk(loop):
        if (
            isinstance(node, ast.AugAssign)
            and isinstance(node.op, ast.Add)
            and _PERPLEXITY.search(written(node.target))
            and any(called(call) == "exp" for call in _behind(node.value, loop))
        ):
            yield BatchMean(written(node.target), over, False, node.lineno, exponential=True)
    yield from _divided_hits(source, set(_hits(loop)), loop.iter)
    yield from _in_meters(source, loop)


def _in_sums(source: Source) -> Iterator[BatchMean]:
    """Yield hits that ``sum()`` adds over a loader's batches: ``sum(... for x, y in loader)``."""
    for division in source.find(ast.BinOp):
        total = division.left
        if not isinstance(total, ast.Call) or called(total) != "sum" or len(total.args) != 1:
            continue
        made = total.args[0]
        if not isinstance(made, (ast.GeneratorExp, ast.ListComp)) or not _counts_hits(made.elt):
            continue
        over = made.generators[0].iter
        if _is_mean_over(source, division, over):
            yield BatchMean(written(made.elt), written(over), True, division.lineno)


def _divided_hits(source: Source, hits: set[str], over: ast.expr) -> Iterator[BatchMean]:
    """Yield the names in ``hits`` that are divided by the number of batches of ``over``."""
    for division in source.find(ast.BinOp):
        if not _is_mean_over(source, division, over):
            continue
        inside = {n.id for n in ast.walk(division.left) if isinstance(n, ast.Name)}
        loader = written(division.right)[len("len(") : -1]
        for name in sorted(hits & inside):
            yield BatchMean(name, loader, True, division.lineno)


def _is_mean_over(source: Source, division: ast.BinOp, over: ast.expr) -> bool:
    """Whether it divides by ``len`` of a loader that ``over`` iterates, and nothing else does."""
    number = division.right
    if not isinstance(division.op, ast.Div) or not isinstance(number, ast.Call):
        return False
    if called(number) != "len" or len(number.args) != 1:
        return False
    loader = written(number.args[0])
    return (
        loader in _loaders(over)
        and not _yields_single_rows(source, loader)
        and _is_whole(source, division)
    )


def _yields_single_rows(source: Source, loader: str) -> bool:
    """Whether ``loader`` is a DataLoader that is made, somewhere, with batches of one row."""
    for node in source.find(ast.Assign):
        for target in node.targets:
            for name, made in assigned(target, node.value):
                if written(name) != loader or not isinstance(made, ast.Call):
                    continue
                if called(made) == "DataLoader" and _batch_of_one(made):
                    return True
    return False


def _batch_of_one(made: ast.Call) -> bool:
    """Whether a call of DataLoader names the batch size 1, or leaves it at its default, 1."""
    if any(keyword.arg in (None, "batch_sampler") for keyword in made.keywords):
        return False
    given = [keyword.value for keyword in made.keywords if keyword.arg == "batch_size"]
    given += made.args[1:2]
    return not given or (isinstance(given[0], ast.Constant) and given[0].value == 1)


def _in_meters(source: Source, loop: ast.For) -> Iterator[BatchMean]:
    """Yield the counts that a meter takes for one value each: ``meter.update(hits)``.

    A meter is an object of a class of this file, with ``update(self, value, n=1)`` and a division
    that makes the mean.
    """
    classes = {
        node.name
        for node in source.find(ast.ClassDef)
        if any(_takes_a_number(each) for each in node.body)
        and any(isinstance(each, ast.Div) for each in ast.walk(node))
    }
    meters = {
        written(target)
        for node in source.find(ast.Assign)
        if isinstance(node.value, ast.Call) and called(node.value) in classes
        for target in node.targets
    }
    for call in _calls(loop.body):
        if called(call) != "update" or len(call.args) != 1 or call.keywords:
            continue
        if not isinstance(call.func, ast.Attribute) or written(call.func.value) not in meters:
            continue
        values = [call.args[0], *_values_of(call.args[0], loop)]
        if any(map(_counts_hits, values)):
            yield BatchMean(written(call.args[0]), written(loop.iter), True, call.lineno)


def _takes_a_number(node: ast.stmt) -> bool:
    """Whether ``node`` is ``def update(self, value, n=1)``."""
    if not isinstance(node, ast.FunctionDef) or node.name != "update":
        return False
    defaults = [d.value for d in node.args.defaults if isinstance(d, ast.Constant)]
    return len(node.args.args) == 3 and defaults == [1]


def _has_no_mean(call: ast.Call) -> bool:
    return bool(_NO_MEAN.search(called(call)) or _OWN.match(called(call)))


def _behind(value: ast.AST, scope: ast.AST) -> list[ast.Call]:
    """Return the calls in ``value``, and in what its names are given in ``scope``."""
    made = [value, *_values_of(value, scope)]
    return [call for each in made for call in ast.walk(each) if isinstance(call, ast.Call)]


def _values_of(value: ast.AST, scope: ast.AST) -> list[ast.expr]:
    names = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
    return [
        node.value
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in names
    ]


def _gathered(loop: ast.For) -> Iterator[ast.expr]:
    """Yield what is added up, or appended, in ``loop`` for a batch as a whole."""
    for node in _of_batch(loop):
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            yield node.value
        elif isinstance(node, ast.Call) and called(node) in ("append", "update") and node.args:
            yield node.args[0]


def _of_batch(loop: ast.For) -> Iterator[ast.AST]:
    """Yield the nodes of ``loop`` but those of loops over the rows of its batch.

    A loop in it is over rows unless it counts something else, as classes: ``range(classes)``.
    """
    for node in ast.iter_child_nodes(loop):
        yield from _beside_rows(node)


def _beside_rows(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.For):
        counts = isinstance(node.iter, ast.Call) and called(node.iter) == "range"
        if not counts or _BY_ROW.search(written(node.iter)):
            return
    yield node
    for each in ast.iter_child_nodes(node):
        yield from _beside_rows(each)


def _hits(loop: ast.For) -> Iterator[str]:
    """Yield the names in which ``loop`` counts equal predictions: ``hits += (a == b).sum()``."""
    for node in ast.walk(loop):
        if not isinstance(node, ast.AugAssign) or not isinstance(node.op, ast.Add):
            continue
        if isinstance(node.target, ast.Name) and _counts_hits(node.value):
            yield node.target.id


def _counts_hits(value: ast.expr) -> bool:
    """Whether ``value`` is a number of equal predictions, and not divided."""
    inside = list(ast.walk(value))
    names = {called(n) for n in inside if isinstance(n, ast.Call)}
    divides = "mean" in names or any(isinstance(n, ast.Div) for n in inside)
    return "sum" in names and _compares(value) and not divides


def _is_whole(source: Source, division: ast.BinOp) -> bool:
    """Whether nothing else is divided by: ``hits / len(loader) / batch_size`` is right."""
    if any(isinstance(node, ast.Div) for node in ast.walk(division.left)):
        return False
    parent = next(source.ancestors(division), None)
    return not (isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Div))
