"""Attention as programs write it by hand: scores, a softmax, and a sum that it weighs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parameter import is_lazy

from nnaudit.report import Location
from nnaudit.targets import callstack
from nnaudit.targets.layers import DROPOUT_FUNCTIONS

_SOFTMAX = frozenset({torch.softmax, F.softmax, Tensor.softmax})
_PRODUCTS = frozenset(
    {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.einsum}
)
_ELEMENTWISE = frozenset(
    {
        torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__,
        torch.div, Tensor.div, Tensor.__truediv__, Tensor.div_, Tensor.__itruediv__,
        torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__,
        torch.sub, Tensor.sub, Tensor.__sub__, Tensor.clamp, torch.clamp,
        torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_, torch.where, Tensor.where,
        torch.exp, Tensor.exp, Tensor.exp_, torch.relu, F.relu, Tensor.relu,
    }
)  # fmt: skip
"""What is done to scores: scaled, masked, given a bias, made positive."""

_DIVISIONS = frozenset(
    {torch.div, Tensor.div, Tensor.__truediv__, Tensor.div_, Tensor.__itruediv__}
)
_SUMS = frozenset({torch.sum, Tensor.sum})

_KEPT = frozenset(
    {
        *DROPOUT_FUNCTIONS, torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_,
        torch.nan_to_num, Tensor.nan_to_num, Tensor.to, Tensor.type_as, Tensor.type, Tensor.float,
        Tensor.half, Tensor.bfloat16, Tensor.contiguous, torch.clone, Tensor.clone,
    }
)  # fmt: skip
"""What is done to weights and leaves their sums alone: a division normalises them anew."""

_SWAPPED = frozenset(
    {torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes, Tensor.swapdims}
)
_RESHAPED = frozenset({torch.reshape, Tensor.reshape, Tensor.view, torch.flatten, Tensor.flatten})


@dataclass(frozen=True)
class WeightedSum:
    """A sum whose weights were made of products of two activations, and normalised.

    By a softmax, or by a division by their own sum.

    Attributes:
        shape: of the weights, as they were normalised.
        normalised: the axis of ``shape`` over which they sum to one.
        summed: the axis of ``shape`` over which the sum goes.
        location: the user's line of the softmax, or of the division.
    """

    shape: tuple[int, ...]
    normalised: int
    summed: int
    location: Location | None


@dataclass(frozen=True)
class _Weights:
    """Normalised weights, wherever their axes are by now: ``axes[i]`` is where axis i began."""

    shape: tuple[int, ...]
    normalised: int
    axes: tuple[int, ...]
    location: Location | None


class AttentionTracker:
    """Follows scores to their softmax, and its weights to the sum."""

    def __init__(self, sums: list[WeightedSum]) -> None:
        """What is found is appended to ``sums``."""
        self._sums = sums
        self._scores: dict[int, weakref.ref[Tensor]] = {}
        self._weights: dict[int, tuple[weakref.ref[Tensor], _Weights]] = {}
        self._totals: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], int]] = {}

    def note(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
    ) -> None:
        """Look at a call of a function of torch's, and at what it returned."""
        if not isinstance(value, Tensor) or not args or is_lazy(value):
            return
        if func in _PRODUCTS:
            self._product(func, args, value)
        elif func in _SOFTMAX:
            self._softmax(args, kwargs, value)
        elif func in _SUMS:
            self._total(args, kwargs, value)
        elif func in _ELEMENTWISE or func in _KEPT:
            self._elementwise(func, args, value)
        elif isinstance(args[0], Tensor) and (weights := self._weights_of(args[0])) is not None:
            self._moved(func, args, kwargs, weights, value)

    def _product(self, func: Callable[..., Any], args: tuple[Any, ...], value: Tensor) -> None:
        operands = [each for each in args if isinstance(each, Tensor)]
        if len(operands) != 2 or any(each.is_leaf and each.requires_grad for each in operands):
            return
        for which, operand in enumerate(operands):
            weights = self._weights_of(operand)
            if weights is None:
                continue
            axis = (
                _einsum_axis(args[0], which, operand.ndim)
                if func is torch.einsum
                else operand.ndim - 1 - which
            )
            if axis is not None and (began := weights.axes[axis]) >= 0:
                self._sums.append(
                    WeightedSum(weights.shape, weights.normalised, began, weights.location)
                )
            return
        if value.ndim >= 3:
            self._scores[id(value)] = weakref.ref(value)

    def _softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> None:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(dim, int) and self._is_scores(args[0]):
            self._normalised(value, dim % value.ndim)

    def _normalised(self, value: Tensor, axis: int) -> None:
        where = callstack.user_line()
        made = _Weights(tuple(value.shape), axis, tuple(range(value.ndim)), where)
        self._weights[id(value)] = (weakref.ref(value), made)

    def _total(self, args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> None:
        """Note the sum of scores over one axis, which is kept: they may be divided by it."""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        keeps = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        if isinstance(dim, int) and keeps and self._is_scores(args[0]):
            held = (weakref.ref(value), weakref.ref(args[0]), dim % value.ndim)
            self._totals[id(value)] = held

    def _total_of(self, tensor: Any) -> tuple[Tensor | None, int]:
        """Return what ``tensor`` is the sum of, and the axis of that."""
        reference, scores, axis = self._totals.get(id(tensor), (None, None, 0))
        known = reference is not None and scores is not None and reference() is tensor
        return (scores(), axis) if known and scores is not None else (None, 0)

    def _elementwise(self, func: Callable[..., Any], args: tuple[Any, ...], value: Tensor) -> None:
        tensors = [each for each in args if isinstance(each, Tensor) and not is_lazy(each)]
        given = [each for each in tensors if each.shape == value.shape]
        weights = [each for each in map(self._weights_of, given) if each is not None]
        if len(tensors) == 1:  # a small number is added to a sum, against a division by zero
            scores, axis = self._total_of(tensors[0])
            if scores is not None:
                self._totals[id(value)] = (weakref.ref(value), weakref.ref(scores), axis)
                return
        if func in _DIVISIONS and len(tensors) == 2:
            scores, axis = self._total_of(tensors[1])
            if scores is not None and scores is tensors[0]:
                self._normalised(value, axis)
                return
        if weights and func in _KEPT:
            self._weights[id(value)] = (weakref.ref(value), weights[0])
        elif any(map(self._is_scores, given)):
            self._scores[id(value)] = weakref.ref(value)

    def _moved(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        weights: _Weights,
        value: Tensor,
    ) -> None:
        """Follow the axes of weights through what turns or folds them."""
        old, axes = args[0], list(weights.axes)
        rest = [*args[1:], *kwargs.values()]
        if func in _SWAPPED and len(rest) == 2:
            one, other = (int(each) for each in rest)
            axes[one], axes[other] = axes[other], axes[one]
        elif func in (torch.permute, Tensor.permute):
            order = rest[0] if len(rest) == 1 else rest
            axes = [axes[int(each)] for each in order]
        elif func in (torch.unsqueeze, Tensor.unsqueeze) and len(rest) == 1:
            axes.insert(int(rest[0]) % value.ndim, -1)
        elif func in _RESHAPED and old.shape[-2:] == value.shape[-2:] and value.ndim >= 2:
            axes = [-1] * (value.ndim - 2) + axes[-2:]
        else:
            return
        moved = _Weights(weights.shape, weights.normalised, tuple(axes), weights.location)
        self._weights[id(value)] = (weakref.ref(value), moved)

    def _is_scores(self, tensor: Any) -> bool:
        reference = self._scores.get(id(tensor))
        return reference is not None and reference() is tensor

    def _weights_of(self, tensor: Tensor) -> _Weights | None:
        reference, weights = self._weights.get(id(tensor), (None, None))
        return weights if reference is not None and reference() is tensor else None


def _einsum_axis(equation: Any, which: int, ndim: int) -> int | None:
    """Return the one axis of operand ``which`` that an einsum sums over; None where it has none."""
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    inputs, output = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    if len(terms) != 2 or len(terms[which]) != ndim:
        return None
    summed = [i for i, letter in enumerate(terms[which]) if letter not in output]
    return summed[0] if len(summed) == 1 else None
