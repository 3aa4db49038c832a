"""Functions of the user's that compute a metric in validation, and what they are given there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError, user_code
from nnaudit.loop.base import Loop, Needs
from nnaudit.measure.living import living
from nnaudit.measure.metric_names import best_is_one
from nnaudit.measure.seeding import source_files
from nnaudit.report import Location
from nnaudit.targets import batch as batches
from nnaudit.targets.metrics import FORMS

_ROWS = 512
"""Rows that are kept of what a function is given."""

_BATCHES = 16
"""Validation batches that its targets are looked for in."""


@dataclass(frozen=True)
class MetricFunction:
    """A function of two arguments whose name says that 1 is the best, as validation calls it.

    Attributes:
        name: the function's.
        function: it, as a call ``(predictions, targets)``.
        prediction: what it was given for predictions, (N, ...).
        target: the field of the batch that it was given for targets, of more batches: (M, ...).
        location: its definition.
        says: what stands for no and yes in a prediction that is made up.
        of_library: never, as a :class:`~nnaudit.targets.metrics.Metric` may be.
    """

    name: str
    function: Callable[[Tensor, Tensor], Any]
    prediction: Tensor
    target: Tensor
    location: Location
    says: tuple[float, float] = (0.0, 1.0)
    of_library: bool = False

    def forms(self) -> Iterator[MetricFunction]:
        """Yield it with each way in which such predictions may say no and yes.

        Numbers between 0 and 1 may be logits, and negative ones logits or logs of probabilities.
        """
        known = FORMS if self.prediction.is_floating_point() else FORMS[:1]
        yield from (replace(self, says=form) for form in known)

    def ideal(self, said: Tensor) -> Tensor:
        """Return the prediction that says ``said`` with certainty, in the form of the real ones.

        That is a number for each class on the axis that targets lack; or a number for each target:
        a decision, a probability, a logit.
        """
        given = self.prediction
        axis = _class_axis(given, said)
        low, high = self.says
        if axis is not None:
            made = torch.full((len(said), *given.shape[1:]), low, dtype=given.dtype)
            return made.scatter_(axis, said.long().unsqueeze(axis), high)
        said = said.reshape(len(said), *given.shape[1:])
        binary = bool(((self.target == 0) | (self.target == 1)).all())
        if binary and given.is_floating_point():
            return torch.where(said > 0.5, high, low).to(given.dtype)
        return said.to(given.dtype)

    def value(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Return its values: one by its name, or several by their numbers.

        Raises:
            UserCodeError: it raised, or returned something else than numbers.
        """
        with user_code(f"computing the metric {self.name}"), torch.no_grad():
            found = self.function(output, target)
            if isinstance(found, (list, tuple)):
                return {f"{self.name}[{i}]": float(each) for i, each in enumerate(found)}
            return {self.name: float(found)}


class MetricFunctions(Probe[tuple[MetricFunction, ...]]):
    """Ends an epoch, and notes what such functions of the user's are called with."""

    def measure(self, audit: Audit) -> tuple[MetricFunction, ...]:
        """Return those whose arguments are predictions and a field of the validation batches.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        places = list(named_functions(loop, best_is_one))
        if not places or loop.lacks(Needs.VAL_LOADER):
            return ()
        audit.clock.check()
        seen: dict[int, _Calls] = {}
        try:
            with ExitStack() as stack:
                for names, name, function in places:
                    calls = seen.setdefault(id(function), _Calls(function))
                    names[name] = calls.noting()
                    stack.callback(names.__setitem__, name, function)
                batch = next(iter(loop.batches()))
                loop.step(batch)
                for calls in seen.values():
                    calls.given.clear()  # those of the step are no validation
                if loop.next_epoch(batch) is None:
                    return ()
            held = [batches.clone(each) for each in islice(loop.val_batches(), _BATCHES)]
        except UserCodeError:
            return ()
        found = (_used(calls, held) for calls in seen.values())
        return tuple(each for each in found if each is not None)


@dataclass
class _Calls:
    """What a function was called with, without gradients."""

    function: FunctionType
    given: list[tuple[Any, Any]] = field(default_factory=list)

    def noting(self) -> Callable[..., Any]:
        """Return the function, taking notes."""

        @wraps(self.function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled() and len(args) == 2 and not kwargs:
                self.given.append((_copied(args[0]), _copied(args[1])))
            return self.function(*args, **kwargs)

        return noted


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    return value.copy() if isinstance(value, np.ndarray) else None


def named_functions(
    loop: Loop, wanted: Callable[[str], bool]
) -> Iterator[tuple[dict[str, Any], str, FunctionType]]:
    """Yield the user's functions of two arguments whose name is ``wanted``.

    Each comes with the variables of a module that holds it, and its name there.
    """
    files = {str(Path(file)) for file in source_files(loop)}
    own = [each for each in living(FunctionType) if each.__code__.co_filename in files]
    metrics = {id(each) for each in own if wanted(each.__name__) and _takes_two(each)}
    modules = {id(each.__globals__): each.__globals__ for each in own} if metrics else {}
    for names in modules.values():
        for name, value in list(names.items()):
            if id(value) in metrics:
                yield names, name, value


def _takes_two(function: FunctionType) -> bool:
    parameters = inspect.signature(function).parameters.values()
    required = [p for p in parameters if p.default is p.empty]
    return len(required) == 2 and all(p.kind is p.POSITIONAL_OR_KEYWORD for p in required)


def _used(calls: _Calls, held: Sequence[Any]) -> MetricFunction | None:
    """Return the function with what it was given; None where its target is no field of a batch."""
    pairs = [(a, b) for a, b in calls.given if a is not None and b is not None]
    arrays = any(isinstance(value, np.ndarray) for pair in pairs for value in pair)
    tensors = [(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs]
    for pair in tensors:
        paths = [_path_of(value, held) for value in pair]
        if (paths[0] is None) is (paths[1] is None):
            continue
        which = 0 if paths[1] is None else 1
        prediction, given = pair[1 - which], pair[which]
        try:
            target = _field(held, paths[which] or "", given)
        except (KeyError, RuntimeError):
            continue  # batches of several forms
        if len(prediction) != len(given) or not _is_known(prediction, target):
            continue
        return MetricFunction(
            calls.function.__name__,
            _in_order(calls.function, which, arrays=arrays),
            prediction,
            target,
            Location(
                file=calls.function.__code__.co_filename,
                line=calls.function.__code__.co_firstlineno,
            ),
        )
    return None


def _in_order(
    function: FunctionType, which: int, *, arrays: bool
) -> Callable[[Tensor, Tensor], Any]:
    def call(prediction: Tensor, target: Tensor) -> Any:
        pair: tuple[Any, Any] = (prediction.clone(), target.clone())
        pair = (pair[0].numpy(), pair[1].numpy()) if arrays else pair
        return function(*(pair if which == 1 else pair[::-1]))

    return call


def _path_of(value: Tensor, held: Sequence[Any]) -> str | None:
    """Return where in one of the batches ``held`` the values are; None where they are in none."""
    if value.ndim == 0:
        return None
    paths = (batches.paths_of(batch, value) for batch in held)
    return next((found[0] for found in paths if found), None)


def _field(held: Sequence[Any], path: str, given: Tensor) -> Tensor:
    """Return a field of all batches together, in the form of ``given``."""
    fields = [dict(batches.tensors(batch))[path].detach().cpu() for batch in held]
    rows = [field.reshape(-1, *given.shape[1:]).to(given.dtype) for field in fields]
    return torch.cat(rows)[:_ROWS]


def _is_known(prediction: Tensor, target: Tensor) -> bool:
    """Whether it is known what a perfect prediction is: of classes that all occur, or of numbers.

    A class that does not occur may count as 0 in a mean over classes.
    """
    if prediction.is_complex() or target.is_complex() or prediction.layout is not torch.strided:
        return False
    axis = _class_axis(prediction, target)
    labels = torch.unique(target)
    if axis is None:
        whole = labels.is_floating_point() or len(labels) == int(labels.max()) + 1
        same = prediction[0].numel() == target[0].numel()
        return same and len(labels) > 1 and whole
    classes = torch.arange(prediction.shape[axis])
    return not target.is_floating_point() and torch.equal(labels.long().sort().values, classes)


def _class_axis(prediction: Tensor, target: Tensor) -> int | None:
    """Return the axis of ``prediction`` that has a number for each class; None without."""
    if prediction.ndim != target.ndim + 1:
        return None
    for axis in (1, prediction.ndim - 1):
        rest = [*prediction.shape[1:axis], *prediction.shape[axis + 1 :]]
        if rest == list(target.shape[1:]) and prediction.shape[axis] > 1:
            return axis
    return None
