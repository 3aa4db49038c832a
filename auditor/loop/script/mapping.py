"""How a batch reached the model in a step that was watched, so that others can be fed alike.

Tensors are recognised by their content: a script may move, cast, reshape or shift what its loader
yields before the model sees it. What was changed in any other way (normalised on the device, mixed
up, encoded) is not recognised, and the loop finds out by letting the script do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nnaudit.loop.losses import LossCall
from nnaudit.targets import batch as batches

CUTS: tuple[tuple[slice, ...], ...] = (
    (),
    (slice(None), slice(None, -1)),
    (slice(None), slice(1, None)),
)
"""Parts of a tensor that scripts take: all of it; all but the last, or the first, of a sequence."""


@dataclass(frozen=True)
class Take:
    """A recipe that makes a tensor from one of a batch's.

    Attributes:
        path: which of the batch's leaves.
        cut: which part of it.
        dtype: what it is cast to.
        tail: the shape after the first dimension; None where the shape stays.
        merged: the first dimension is merged with the second, as in ``targets.view(-1)``.
    """

    path: str
    cut: tuple[slice, ...] = field(default=(), hash=False)  # no slice has one before Python 3.12
    dtype: torch.dtype | None = None
    tail: tuple[int, ...] | None = None
    merged: bool = False

    def rows(self) -> Take:
        """Return the recipe without the reshaping, so that rows stay rows."""
        return replace(self, tail=None, merged=False)

    def of(self, whole: Any) -> Any:
        """Apply the recipe.

        Raises:
            LookupError: ``whole`` has no such leaf.
        """
        leaf = _leaf(whole, self.path)
        if not isinstance(leaf, Tensor):
            return leaf
        taken = leaf[self.cut] if self.cut else leaf
        taken = taken if self.dtype is None else taken.to(self.dtype)
        if self.tail is None:
            return taken
        return taken.reshape(-1 if self.merged else len(taken), *self.tail)


def _leaf(whole: Any, path: str) -> Any:
    for found, leaf in batches.leaves(whole):
        if found == path:
            return leaf
    for found, tensor in batches.tensors(whole):
        if found == path:
            return tensor
    raise LookupError(path)


def find(value: Tensor, whole: Any, *, name: str = "") -> Take | None:
    """Return how ``value`` comes from a leaf of ``whole``, or None.

    ``name`` is the argument it was passed as: a leaf of the same name is preferred, for masks and
    labels may look alike, and then one of the same dtype: ids cast to bool are their own mask.
    """
    goal = value.detach().cpu()
    candidates = [(path, t.detach().cpu()) for path, t in batches.tensors(whole) if t.numel()]
    candidates.sort(
        key=lambda item: (not (name and repr(name) in item[0]), item[1].dtype != goal.dtype)
    )
    for cut in CUTS:
        for path, leaf in candidates:
            if cut and (leaf.ndim < 2 or leaf.layout is not torch.strided):
                continue
            take = _matching(goal, leaf[cut] if cut else leaf, Take(path, cut))
            if take is not None:
                return take
    return None


def _matching(goal: Tensor, leaf: Tensor, take: Take) -> Take | None:
    if goal.numel() != leaf.numel():
        return None
    if goal.layout is not torch.strided or leaf.layout is not torch.strided:
        return take if goal.dtype == leaf.dtype and batches.same_values(goal, leaf) else None
    cast = leaf.to(goal.dtype) if leaf.is_complex() == goal.is_complex() else leaf
    if cast.dtype != goal.dtype or not _same(cast.reshape(goal.shape), goal):
        return None
    take = replace(take, dtype=None if leaf.dtype == goal.dtype else goal.dtype)
    if leaf.shape == goal.shape:
        return take
    if goal.ndim == 0 or leaf.ndim == 0:
        return None
    return replace(take, tail=tuple(goal.shape[1:]), merged=goal.shape[0] != leaf.shape[0])


def _same(left: Tensor, right: Tensor) -> bool:
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


@dataclass(frozen=True)
class Recipe:
    """What one call of a model was given, as recipes in place of tensors.

    Attributes:
        args, kwargs: the call's arguments; :class:`Take` stands where a tensor was.
        target: likewise what the output is compared with; None where that is unknown.
        rows: the size of the first dimension of the first tensor that was recognised.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any = None
    rows: int = 0

    def fill(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments made from ``batch``."""
        made: dict[Take, Any] = {}

        def make(leaf: Any) -> Any:
            if isinstance(leaf, _Fixed):
                return leaf.of_size(self.rows, next((len(v) for v in made.values()), self.rows))
            if isinstance(leaf, _Counted):
                return leaf.of(batch)
            if not isinstance(leaf, _Slot):
                return leaf
            if leaf.take not in made:
                made[leaf.take] = leaf.take.of(batch)
            return made[leaf.take]

        return batches.map_leaves(self.args, make), batches.map_leaves(self.kwargs, make)

    def taken_back(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], like: Any
    ) -> dict[str, Tensor]:
        """Return the leaves of a batch of the form of ``like`` that a call's arguments come from.

        Empty where an argument is of another form, or only a part of a leaf.
        """
        given, whole = dict(batches.leaves((args, kwargs))), dict(batches.tensors(like))
        found: dict[str, Tensor] = {}
        for path, slot in batches.leaves((self.args, self.kwargs)):
            if not isinstance(slot, _Slot) or not isinstance(given.get(path), Tensor):
                continue
            take, value = slot.take, given[path].cpu()
            leaf = whole.get(take.path)
            if leaf is None or take.cut or not value.ndim or not leaf.ndim:
                return {}
            value = value.to(leaf.dtype)
            if take.tail is not None:
                if value.numel() % max(leaf[0].numel(), 1):
                    return {}
                value = value.reshape(-1, *leaf.shape[1:])
            found[take.path] = value
        return found

    def same_as(self, take: Take, args: Any, kwargs: Any, value: Any) -> Any:
        """Return the argument made by ``take``, where there is one, else ``value``."""
        slots = [leaf for _, leaf in batches.leaves((self.args, self.kwargs))]
        made = [leaf for _, leaf in batches.leaves((args, kwargs))]
        if len(slots) == len(made):
            for slot, leaf in zip(slots, made, strict=True):
                if isinstance(slot, _Slot) and slot.take.rows() == take:
                    return leaf
        return value

    def paths(self) -> set[str]:
        """Return the leaves of the batch that it uses."""
        everything = (self.args, self.kwargs, self.target)
        return {leaf.take.path for _, leaf in batches.leaves(everything) if isinstance(leaf, _Slot)}


class _Slot:
    """Where a tensor goes: no dataclass, which would be taken for a container."""

    def __init__(self, take: Take) -> None:
        self.take = take


class _Counted:
    """A number, as a tensor without dimensions, that is counted in a leaf of the batch.

    Frameworks hand a model how many rows, or valid targets, it is to divide its loss by: those of
    all batches that go into a step.
    """

    def __init__(self, path: str, count: Callable[[Tensor], int], like: Tensor, times: int) -> None:
        self.path = path
        self._count = count
        self._like = like
        self._times = times

    @classmethod
    def find(cls, value: Tensor, batch: Any, times: int) -> _Counted | None:
        """Return what ``value`` counts in ``batch``, or in ``times`` batches alike; or None."""
        if value.ndim or value.dtype is torch.bool or value.is_complex():
            return None
        for each in sorted({1, times}):
            for count in _COUNTS:
                for path, leaf in batches.tensors(batch):
                    if leaf.ndim and each * count(leaf) == value.item():
                        return cls(path, count, value.detach(), each)
        return None

    def of(self, batch: Any) -> Tensor:
        """Count it in ``batch``.

        Raises:
            LookupError: ``batch`` has no such leaf.
        """
        return torch.full_like(self._like, self._times * self._count(_tensor(batch, self.path)))


def _tensor(whole: Any, path: str) -> Tensor:
    found = next((tensor for at, tensor in batches.tensors(whole) if at == path), None)
    if found is None:
        raise LookupError(path)
    return found


def _valid(leaf: Tensor) -> int:
    """Count the targets that torch's losses do not ignore; of other leaves, none."""
    whole = not (leaf.is_floating_point() or leaf.is_complex())
    return int((leaf != IGNORED).sum()) if whole else -1


_COUNTS: tuple[Callable[[Tensor], int], ...] = (
    _valid,
    lambda leaf: _valid(leaf[:, 1:]) if leaf.ndim > 1 else -1,
    len,
    lambda leaf: leaf.numel(),
)

IGNORED = -100
"""The target that torch's losses leave out, unless told otherwise."""


class _Fixed:
    """A tensor that is not of the batch, such as the state that a recurrent network goes on from.

    It stays what it was in the call that was watched, so that steps can be repeated.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def of_size(self, before: int, now: int) -> Tensor:
        """Return it for ``now`` rows instead of ``before``: as many along that one dimension."""
        along = [i for i, size in enumerate(self.value.shape) if size == before]
        if now == before or len(along) != 1:
            return self.value.clone()
        wanted = torch.arange(now, device=self.value.device) % before
        return self.value.index_select(along[0], wanted)


def recipe(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: Any,
    *,
    fix: bool = False,
    times: int = 1,
) -> Recipe | None:
    """Return how the arguments come from ``batch``; None where a tensor is not recognised.

    With ``fix`` those in a tuple or list that are not recognised stay what they are. ``times`` is
    how many batches were read for the step.
    """
    first = next((tensor for _, tensor in batches.tensors((args, kwargs))), None)
    if first is None:
        return None
    try:
        return Recipe(
            tuple(_slotted(value, batch, "", fix, times) for value in args),
            {name: _slotted(value, batch, name, fix, times) for name, value in kwargs.items()},
            rows=len(first) if first.ndim else 0,
        )
    except LookupError:
        return None


def _slotted(value: Any, batch: Any, name: str, fix: bool, times: int) -> Any:
    nested = isinstance(value, (tuple, list))

    def slot(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            take = find(leaf, batch, name=name)
            if take is not None:
                return _Slot(take)
            if (counted := _Counted.find(leaf, batch, times)) is not None:
                return counted
            if fix and nested:
                return _Fixed(leaf.detach())
            raise LookupError
        if any(True for _ in batches.tensors(leaf)):
            for path, other in batches.leaves(batch):
                if type(other) is type(leaf) and batches.digest(other) == batches.digest(leaf):
                    return _Slot(Take(path))
            raise LookupError
        return leaf

    return batches.map_leaves(value, slot)


@dataclass(frozen=True)
class LossRule:
    """How the main loss comes from the output and the batch.

    Attributes:
        call: the loss call it was learnt from.
        prediction: how its input comes from the model's output.
        others: how its other tensors come from the batch; what is absent stays as it was.
        own: the model computes the loss itself (``output.loss``); nothing else is set then.
    """

    call: LossCall | None
    prediction: Take | None = None
    others: dict[str, Take] | None = None
    own: bool = False

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the loss of ``output`` against what ``batch`` holds."""
        if self.own:
            own: Tensor = output["loss"] if isinstance(output, dict) else output.loss
            return own
        assert self.call is not None and self.prediction is not None
        changes = {
            name: take.of(batch).to(self.call.arguments[name].device)
            for name, take in (self.others or {}).items()
        }
        return self.call.recompute(self.prediction.of(output), **changes)


def loss_rule(call: LossCall | None, output: Any, batch: Any) -> LossRule | None:
    """Return how ``call`` came from ``output`` and ``batch``; None where it is not recognised."""
    if call is None or not isinstance(call.arguments.get("input"), Tensor):
        return None
    prediction = find(call.arguments["input"], output)
    if prediction is None:
        return None
    others: dict[str, Take] = {}
    for name, value in call.arguments.items():
        if name == "input" or not isinstance(value, Tensor) or value.numel() < 2:
            continue
        take = find(value, batch, name=name)
        if take is not None:
            others[name] = take
        elif name == "target":
            return None
    return LossRule(call, prediction, others)


def rest(batch: Any, used: set[str]) -> Any:
    """Return what of ``batch`` is left when the leaves at ``used`` went into the model.

    A single tensor as itself, several in a tuple, None where nothing is left.
    """
    left = [leaf for path, leaf in _tensor_leaves(batch) if path not in used]
    return None if not left else left[0] if len(left) == 1 else tuple(left)


def _tensor_leaves(batch: Any) -> Iterator[tuple[str, Any]]:
    return ((path, tensor) for path, tensor in batches.tensors(batch))


def mapped(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return ``batch`` with ``function`` applied to its tensors."""
    return batches.map_leaves(
        batch, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf
    )
