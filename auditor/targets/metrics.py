"""Metrics: the user's own, however they want to be called, and the plain ones of each task."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnaudit.errors import user_code
from nnaudit.targets.definitions import NAMES

_BUILDERS = ("build_", "make_", "get_", "create_")
_TARGET_FIRST = ("y_true", "target", "targets", "label", "labels", "truth", "gt", "y", "true")

Task = Literal["classes", "binary", "numbers"]


class Prediction(NamedTuple):
    """What a metric of one argument is given, under the names that transformers uses."""

    predictions: np.ndarray
    label_ids: np.ndarray


@dataclass(frozen=True)
class Metric:
    """A metric of the user's.

    Attributes:
        name: how the user calls it.
        stateful: it gathers batches by ``update`` and gives one value by ``compute``.
    """

    name: str
    function: Any
    stateful: bool

    @property
    def of_library(self) -> bool:
        """It is a library's, which computes what it is told to: one with a rare label may be 0."""
        owner = type(self.function) if self.stateful else self.function
        package = str(getattr(owner, "__module__", "")).partition(".")[0]
        return package in _LIBRARIES or package == "sklearn"

    def value(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Return its values by name: one, or as many as it has in a dict.

        Raises:
            UserCodeError: it raised, whether it was given the output or the classes in it.
        """
        with user_code(f"computing the metric {self.name}"):
            try:
                found = self._call(output, target)
            except Exception:
                if output.ndim <= target.ndim:
                    raise
                # Some take the classes that were decided for, not a number for each of them.
                found = self._call(output.argmax(1), target)
        if isinstance(found, Mapping):
            return {str(key): float(value) for key, value in found.items()}
        return {self.name: float(found)}

    def _call(self, output: Tensor, target: Tensor) -> Any:
        if self.stateful:
            fresh = copy.deepcopy(self.function)
            fresh.reset()
            fresh.update(output, target)
            return fresh.compute()
        if str(getattr(self.function, "__module__", "")).startswith("sklearn."):
            decided = output.argmax(1) if output.ndim > target.ndim else output
            return self.function(target.numpy(), decided.numpy())
        names = _required(self.function)
        if len(names) == 1:
            return self.function(Prediction(output.numpy(), target.numpy()))
        if names and names[0] in _TARGET_FIRST:
            return self.function(target, output)
        return self.function(output, target)


def metrics_in(namespace: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Return the metrics that a program holds under a conventional name."""
    found = (metrics_of(namespace[name], name) for name in NAMES["metric"] if name in namespace)
    return next((metrics for metrics in found if metrics), ())


_LIBRARIES = frozenset({"torchmetrics", "torcheval"})
_OF_SKLEARN = frozenset(
    {
        "accuracy_score", "balanced_accuracy_score", "matthews_corrcoef", "cohen_kappa_score",
        "r2_score", "mean_absolute_error", "mean_squared_error",
    }
)  # fmt: skip
"""Functions of scikit-learn that need to be told nothing beside targets and predictions."""


def library_metrics(held: Iterable[tuple[str, Any]]) -> tuple[Metric, ...]:
    """Return the metrics of known libraries among named values, whatever their names: one of each.

    Objects that compare predictions with targets (a mean of losses does not), and functions.
    """
    found: dict[str, Metric] = {}
    for _, value in held:
        package = str(getattr(type(value), "__module__", "")).partition(".")[0]
        if package in _LIBRARIES and _compares(value):
            name = type(value).__name__
            found.setdefault(name, Metric(name, value, stateful=True))
        name = str(getattr(value, "__name__", ""))
        if name in _OF_SKLEARN and str(getattr(value, "__module__", "")).startswith("sklearn."):
            found.setdefault(name, Metric(name, value, stateful=False))
    return tuple(found.values())


def _compares(metric: Any) -> bool:
    if not all(callable(getattr(metric, part, None)) for part in ("update", "compute", "reset")):
        return False
    names = _required(metric.update)
    return len(names) == 2 and names[1] in _TARGET_FIRST


def metrics_of(made: Any, name: str = "metric") -> tuple[Metric, ...]:
    """Return the metrics in ``made``; none where the name means something else.

    They are functions, objects with ``update`` and ``compute``, dicts of these, and builders of
    one of them, told by their names.
    """
    if isinstance(made, Mapping) and not callable(made):
        return tuple(m for key, value in made.items() for m in metrics_of(value, str(key)))
    if all(callable(getattr(made, part, None)) for part in ("update", "compute", "reset")):
        return () if inspect.isclass(made) else (Metric(name, made, stateful=True),)
    if not callable(made) or inspect.isclass(made):
        return ()
    if not _required(made):
        if not str(getattr(made, "__name__", "")).startswith(_BUILDERS):
            return ()  # it measures the network by itself, and how long that takes nobody knows
        with user_code(f"building the metric {name}"):
            built = made()
        return () if built is made else metrics_of(built, name)
    own = str(getattr(made, "__name__", name))
    return (Metric(name if own == "<lambda>" else own, made, stateful=False),)


def _required(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ["output", "target"]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind in positional]


# --- plain metrics --------------------------------------------------------------------------------


def plain(task: Task, output: Tensor, target: Tensor) -> dict[str, float]:
    """Return the usual metrics of ``task``.

    Classes and binary: accuracy, balanced accuracy (mean recall), macro F1, mean IoU over classes
    that occur. Numbers: mean absolute error and R2.
    """
    if task == "numbers":
        error = output.double() - target.double()
        spread = (target.double() - target.double().mean()).square().mean()
        return {
            "MAE": float(error.abs().mean()),
            "R2": 1.0 - float(error.square().mean() / spread.clamp_min(1e-30)),
        }
    return _of_classes(decided(task, output).flatten(), target.flatten().long())


def decided(task: Task, output: Tensor) -> Tensor:
    """Return the class that ``output`` decides for, or the numbers themselves."""
    if task == "classes":
        return output.argmax(1)
    if task == "binary":
        probabilities = float(output.min()) >= 0.0 and float(output.max()) <= 1.0
        return (output > (0.5 if probabilities else 0.0)).long()
    return output


def _of_classes(guess: Tensor, truth: Tensor) -> dict[str, float]:
    recall, f1, iou = (
        torch.tensor(values, dtype=torch.float64)
        for values in zip(*_by_class(guess, truth), strict=True)
    )
    return {
        "accuracy": float((guess == truth).double().mean()),
        "balanced accuracy": float(recall.mean()),
        "macro F1": float(f1.mean()),
        "mean IoU": float(iou.mean()),
    }


def _by_class(guess: Tensor, truth: Tensor) -> Iterator[tuple[float, float, float]]:
    for each in torch.unique(truth):
        said, is_so = guess == each, truth == each
        both = float((said & is_so).sum())
        either = float((said | is_so).sum())
        total = float(said.sum() + is_so.sum())
        yield both / float(is_so.sum()), 2 * both / total, both / either


FORMS = ((0.0, 1.0), (-10.0, 10.0), (-20.0, 0.0))
"""What stands for no and yes in outputs: probabilities (or decisions), logits, logs of these."""


def extremes(output: Tensor) -> tuple[float, float]:
    """Return what stands for no and yes in such outputs, one of :data:`FORMS`."""
    low, high = float(output.min()), float(output.max())
    if low >= 0.0 and high <= 1.0:
        return FORMS[0]
    return FORMS[2] if high <= 0.0 else FORMS[1]
