"""Predictions and targets that validation compares by an error of quantities: one unit or two.

What is compared may be the network's output itself, or that times a number and plus another, as
when a scaling is undone. What is done to the output is done to the targets of the loss as well:
these are then what a perfect network would be compared with, and must be like what it is compared
with indeed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.measure.metric_names import best_is_zero
from nnaudit.measure.result_tap import FunctionTap
from nnaudit.probes.first_steps import First, FirstSteps
from nnaudit.probes.metric_functions import named_functions
from nnaudit.report import Location
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack
from nnaudit.targets.model_inputs import main_tensor

_OF_SKLEARN = frozenset(
    {
        "explained_variance_score", "max_error", "mean_absolute_error",
        "mean_absolute_percentage_error", "mean_squared_error", "median_absolute_error",
        "r2_score", "root_mean_squared_error",
    }
)  # fmt: skip
"""Functions of scikit-learn that are given targets first, and compare quantities."""

_QUANTITIES = frozenset({"mse", "l1", "smooth_l1", "huber"})
"""Losses of which the targets are in the unit of the output."""

_LOSSES = frozenset({F.huber_loss, F.l1_loss, F.mse_loss, F.smooth_l1_loss})

_DIFFERENCES = frozenset({Tensor.sub, Tensor.__sub__, torch.sub})

_SECONDS = 3.0
_FEWEST = 16
_ALIKE = 1e-3
"""How far numbers that two lines were computed with may differ by rounding."""

_EXACT = 1e-4
"""Of the deviation: what rounding leaves between an output and what is a line of it."""


@dataclass(frozen=True)
class ComparedUnits:
    """What one call compares, and what the loss says of its unit.

    Attributes:
        function: the metric's name.
        compared: mean and deviation of the targets that predictions are compared with.
        trained: the same of the training targets, in the unit of these predictions.
        location: the line that calls it.
        lines: by what number the outputs were multiplied to make the predictions, and what was
            added; and the same of the loader's validation targets, where the loss is given such as
            they are. None where the targets are not known.
        turned: the targets of each row are the loader's in another order.
    """

    function: str
    compared: tuple[float, float]
    trained: tuple[float, float]
    location: Location | None
    lines: tuple[tuple[float, float], tuple[float, float]] | None = None
    turned: bool = False

    @property
    def parted(self) -> bool:
        """Whether something else was done to the targets than to the predictions."""
        if self.lines is None:
            return False
        one, other = (np.array(line) for line in self.lines)
        return not np.allclose(one, other, rtol=_ALIKE, atol=_ALIKE * float(np.abs(one).max()))

    @property
    def apart(self) -> float:
        """How many times, or how many deviations, the two are apart."""
        (mean, deviation), (other, another) = self.compared, self.trained
        wide, narrow = max(deviation, another), max(min(deviation, another), 1e-30)
        return max(wide / narrow, abs(mean - other) / max(wide, 1e-30))


class UnitsInValidation(Probe[tuple[ComparedUnits, ...] | None]):
    """Ends an epoch, and listens to functions that compare quantities."""

    probes = (FirstSteps,)
    steps = 2

    def measure(self, audit: Audit) -> tuple[ComparedUnits, ...] | None:
        """Return the calls whose predictions are a line of the network's outputs.

        None where the program's own validation cannot be reached, or its targets are no quantities.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop, first = audit.loop, audit.probe(FirstSteps)
        trained = _trained_on(first)
        if trained is None or loop.lacks(Needs.VAL_LOADER):
            return None
        heard = _Heard()
        try:
            with ExitStack() as stack:
                for names, name, function in _places(loop):
                    names[name] = heard.noting(function)
                    stack.callback(names.__setitem__, name, function)
                hook = loop.model.register_forward_hook(heard.note_output)
                stack.callback(hook.remove)
                stack.enter_context(_LossTap(heard))
                batch = next(iter(loop.batches()))
                loop.step(batch)
                heard.calls.clear()
                heard.outputs.clear()
                if loop.next_epoch(batch) is None:
                    return None
            targets = _validated_on(loop, first, heard) if heard.calls else None
        except (UserCodeError, RuntimeError, StopIteration):
            return None
        found = (_units(call, trained, targets) for call in heard.calls)
        return tuple(each for each in found if each is not None)


def _places(loop: Loop) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yield where such functions are called by: the user's own, and scikit-learn's."""
    library = sys.modules.get("sklearn.metrics")
    spaces = [vars(library), *_user_modules(loop)] if library else []  # before any is replaced
    yield from named_functions(loop, best_is_zero)
    for names in spaces:
        for name, value in list(names.items()):
            if _is_of_sklearn(value):
                yield names, name, value


def _is_of_sklearn(value: Any) -> bool:
    """Whether ``value`` is one of the functions, by its names: a module may be imported twice."""
    home = str(getattr(value, "__module__", ""))
    known = getattr(value, "__name__", "") in _OF_SKLEARN
    return callable(value) and known and home.startswith("sklearn.")


def _user_modules(loop: Loop) -> Iterator[dict[str, Any]]:
    """Yield the variables of the modules that the user's functions are in, each once."""
    seen = {id(names): names for names, _, _ in named_functions(loop, lambda _: True)}
    yield from seen.values()


@dataclass
class _Call:
    function: str
    truth: NDArray[np.float64]
    prediction: NDArray[np.float64]
    outputs: list[NDArray[np.float64]]
    location: Location | None
    width: int = 1
    """Numbers of each row, where the two have one shape."""


@dataclass
class _Heard:
    calls: list[_Call] = field(default_factory=list)
    outputs: list[NDArray[np.float64]] = field(default_factory=list)

    def note_output(self, module: Any, args: Any, output: Any) -> None:
        """Keep what the network gives in validation."""
        made = main_tensor(output)
        if not torch.is_grad_enabled() and made is not None:
            self.outputs.append(_flat(made))

    def keep(self, name: str, truth: Any, prediction: Any) -> None:
        """Keep what a function is given, where these are as many numbers."""
        given = [each for each in (truth, prediction) if isinstance(each, (Tensor, np.ndarray))]
        if len(given) < 2 or not all(self._may_be_outputs(_size(each)) for each in given):
            return
        pair = [_flat(each) for each in given]
        if len(pair[0]) == len(pair[1]) >= _FEWEST:
            where, shapes = callstack.user_line(), {tuple(each.shape) for each in given}
            width = len(pair[0]) // max(given[0].shape[0], 1) if len(shapes) == 1 else 1
            true, predicted = pair
            self.calls.append(_Call(name, true, predicted, [*self.outputs], where, width))

    def _may_be_outputs(self, size: int) -> bool:
        """Whether so many numbers are those of the last outputs, one or several."""
        return size in accumulate(len(each) for each in reversed(self.outputs))

    def noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, taking notes."""

        @wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if len(args) > 1:
                self.keep(getattr(function, "__name__", "the metric"), args[0], args[1])
            return function(*args, **kwargs)

        return noted


class _LossTap(FunctionTap):
    """Hears the losses that validation computes, and the differences that it takes."""

    def __init__(self, into: _Heard) -> None:
        super().__init__()
        self.into = into

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Keep what a loss or a difference is given, where no gradient is to go through it."""
        name = "The difference" if func in _DIFFERENCES else getattr(func, "__name__", "")
        given = args[:2]
        if func in _LOSSES | _DIFFERENCES and all(isinstance(each, Tensor) for each in given):
            with torch._C.DisableTorchFunction():
                silent = not torch.is_grad_enabled() or not any(t.requires_grad for t in given)
                if len(given) == 2 and silent:
                    self.into.keep(name, given[1], given[0])
        return result


def _size(values: Tensor | NDArray[Any]) -> int:
    return values.numel() if isinstance(values, Tensor) else int(values.size)


def _flat(values: Any) -> NDArray[np.float64]:
    array = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(values)
    return array.double().numpy().reshape(-1) if not array.is_complex() else np.zeros(0)


def _trained_on(first: First) -> NDArray[np.float64] | None:
    """Return the targets of the loss in the first steps; None where they are no quantities."""
    targets = [call.target for main in first.supervised for call in main.calls[:8]
               if call.kind in _QUANTITIES]  # fmt: skip
    values = np.concatenate([_flat(each) for each in targets]) if targets else np.zeros(0)
    return values if len(values) >= _FEWEST and values.std() > 0 else None


def _validated_on(loop: Loop, first: First, heard: _Heard) -> NDArray[np.float64] | None:
    """Return the field of the validation batches that the loss's targets are in training.

    In the order of the loader, as many as the outputs of the first calls, and as can be read in
    :data:`_SECONDS`. None where the loss is given something else, or the network was called with
    something else.

    Raises:
        UserCodeError: the loader raised.
    """
    paths = _target_paths(first)
    sizes = [len(each) for each in heard.outputs]
    if not paths or not sizes:
        return None
    found: list[NDArray[np.float64]] = []
    begun = time.monotonic()
    for batch, size in zip(loop.val_batches(), sizes, strict=False):
        if time.monotonic() - begun > _SECONDS:
            break
        fields = dict(batches.tensors(batch))
        values = [_flat(fields[path]) for path in paths if path in fields]
        if not values or len(values[0]) != size:
            return None
        found.append(values[0])
    return np.concatenate(found) if found else None


def _target_paths(first: First) -> list[str]:
    """Return the paths of the field that is the target of each of the first losses."""
    for main in first.supervised:
        if main.calls[0].kind in _QUANTITIES:
            pairs = zip(first.batches, main.calls, strict=False)
            known = [set(batches.paths_of(batch, call.target)) for batch, call in pairs]
            return sorted(set.intersection(*known)) if known else []
    return []


def _made_of_targets(
    call: _Call, values: NDArray[np.float64], targets: NDArray[np.float64] | None
) -> tuple[tuple[float, float] | None, bool]:
    """Return the line by which ``values`` are targets of the same rows as ``call``'s outputs.

    And whether they are these numbers, each row's in another order.
    """
    end = sum(map(len, call.outputs))
    if targets is None or end > len(targets) or end < len(values):
        return None, False
    given = targets[end - len(values) : end]
    width = call.width
    turned = False
    if width > 1 and len(given) % width == 0:
        one, other = (each.reshape(-1, width) for each in (given, values))
        same = np.array_equal(np.sort(one, 1), np.sort(other, 1))
        turned = bool(same and (one != other).any(1).mean() > 0.5)
    return _line(values, [given]), turned


def _units(
    call: _Call, trained: NDArray[np.float64], targets: NDArray[np.float64] | None
) -> ComparedUnits | None:
    """Return what ``call`` compares; None where its predictions are no line of the outputs."""
    for one, other in ((call.truth, call.prediction), (call.prediction, call.truth)):
        line = _line(other, call.outputs)
        if line is not None and _line(one, call.outputs) is None:
            slope, offset = line
            expected = slope * trained + offset
            of_targets, turned = _made_of_targets(call, one, targets)
            return ComparedUnits(
                call.function,
                (float(one.mean()), float(one.std())),
                (float(expected.mean()), float(expected.std())),
                call.location,
                None if of_targets is None else (line, of_targets),
                turned,
            )
    return None


def _line(
    values: NDArray[np.float64], outputs: list[NDArray[np.float64]]
) -> tuple[float, float] | None:
    """Return slope and offset by which the last outputs together make ``values``; None if none."""
    found: list[NDArray[np.float64]] = []
    for output in reversed(outputs):
        found.insert(0, output)
        size = sum(map(len, found))
        if size < len(values):
            continue
        if size > len(values):
            return None
        x = np.concatenate(found)
        if x.std() == 0 or values.std() == 0:
            return None
        slope = float(((x - x.mean()) * (values - values.mean())).mean() / x.var())
        offset = float(values.mean() - slope * x.mean())
        left = float((values - slope * x - offset).std() / values.std())
        return (slope, offset) if left < _EXACT else None
    return None
