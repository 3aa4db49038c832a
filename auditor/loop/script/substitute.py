"""Giving a batch to a script that draws its own: at the network's door, and at the loss's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nnaudit.loop.losses import is_turned
from nnaudit.loop.script.channel import StepRequest
from nnaudit.loop.script.training_objects import TrainingObjects
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import device_of


def why_not(roles: TrainingObjects) -> str:
    """Return why batches cannot be put in place of the script's own; empty where they can."""
    if roles.recipe is None:
        return "the script draws its batches itself, and nnaudit cannot put others in their place"
    if roles.loss is None:
        return "the script draws its batches itself, and what its loss compares with is not known"
    return ""


def placed(made: Any, like: Any, otherwise: torch.device | None = None) -> Any:
    """Return ``made`` with every tensor where its counterpart in ``like`` is.

    A model may want its inputs on one device and their lengths on another. Where the two differ in
    structure, everything goes to ``otherwise``.
    """
    places = [leaf.device if isinstance(leaf, Tensor) else None for _, leaf in batches.leaves(like)]
    if len(places) != sum(1 for _ in batches.leaves(made)):
        return made if otherwise is None else batches.to_device(made, otherwise)
    left = iter(places)

    def place(leaf: Any) -> Any:
        where = next(left)
        return leaf.to(where) if isinstance(leaf, Tensor) and where is not None else leaf

    return batches.map_leaves(made, place)


def followed(made: Any, given: Any) -> Any:
    """Return ``made`` with gradients going on to ``given``, where an attack asks for some."""
    tensors = dict(batches.leaves(given))
    places = iter([path for path, _ in batches.leaves(made)])

    def follow(leaf: Any) -> Any:
        like = tensors.get(next(places))
        if not (isinstance(leaf, Tensor) and isinstance(like, Tensor) and like.requires_grad):
            return leaf
        return leaf + (like - like.detach()) if like.shape == leaf.shape else leaf

    return batches.map_leaves(made, follow)


def shapes(batch: Any) -> list[tuple[int, ...]]:
    """Return the shape of every tensor in ``batch``."""
    return [tuple(tensor.shape) for _, tensor in batches.tensors(batch)]


def refilled(place: Any, batch: Any) -> Any:
    """Return a copy of ``batch``, in the memory of ``place`` where it is of the same form.

    ``itertools.cycle`` gives out again and again the first batches that it got.
    """
    old, new = list(batches.leaves(place)), list(batches.leaves(batch))
    same = [path for path, _ in old] == [path for path, _ in new] and all(
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.shape == b.shape
        and a.dtype == b.dtype
        for (_, a), (_, b) in zip(old, new, strict=True)
    )
    if not same:
        return batches.clone(batch)
    with torch.no_grad():
        for (_, a), (_, b) in zip(old, new, strict=True):
            a.copy_(b)
    return place


class TargetSwap(TorchFunctionMode):
    """Replaces what the script's main loss function compares with by what a batch holds."""

    def __init__(self, roles: TrainingObjects, order: StepRequest) -> None:
        """``roles`` say which function that is and how its arguments come from the batch."""
        super().__init__()
        self._order = order
        rule = roles.loss
        self._function = rule.call.function if rule is not None and rule.call is not None else None
        moved = batches.to_device(batches.clone(order.batch), device_of(roles.model))
        others = (rule.others or {}) if rule is not None else {}
        self._others = {name: take.of(moved) for name, take in others.items()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` with the batch's target, where it is that function."""
        kwargs = dict(kwargs or {})
        # The same function is asked for the loss of a validation, and of another network that the
        # script trains in between: their batches stay what they are.
        if func is self._function and torch.is_grad_enabled() and self._order.handed:
            target = self._others.get("target")
            if len(args) > 1 and is_turned(func, args[0], args[1], None):
                args = (args[1], args[0], *args[2:])
            if target is not None and len(args) > 1:
                args = (args[0], target, *args[2:])
            elif target is not None:
                kwargs["target"] = target
            kwargs.update({name: value for name, value in self._others.items() if name in kwargs})
        return func(*args, **kwargs)
