"""Loaders and samplers that want to be told the number of the epoch (``set_epoch``)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from nnaudit.errors import TargetError, UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.trace import patched

_FAR_EPOCH = 1000
"""A number that no audited run gets to."""


def tellable(loader: Any) -> tuple[Any, Any]:
    """Return what of a loader without an index may want to be told the epoch."""
    return loader, getattr(loader, "dataset", None)


def is_told(loop: Loop, *candidates: Any) -> bool | None:
    """Whether the user's code, as it runs from one epoch to the next, tells any its number.

    None where no such code can be run, or what it tells is the number of the first epoch.
    """
    waiting = tell_epoch(*candidates, epoch=_FAR_EPOCH)
    before = [_epoch_of(each) for each in waiting]
    told: list[Any] = []

    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        def set_epoch(*args: Any, **kwargs: Any) -> Any:
            told.extend((*args[-1:], *kwargs.values()))
            return real(*args, **kwargs)

        return set_epoch

    with ExitStack() as patches:
        for each in waiting:
            patches.enter_context(patched(each, "set_epoch", noted))
        try:
            batch = next(iter(loop.batches()))
            loop.step(batch)
            step = loop.next_epoch(batch)
        except (UserCodeError, TargetError):
            return None
    now = [_epoch_of(each) for each in waiting]
    if step is None:
        return None
    if not told and before == now:
        return False
    return any(number for number in (*told, *now) if number != _FAR_EPOCH) or None


def _epoch_of(sampler: Any) -> Any:
    return getattr(sampler, "epoch", None)


def counts_its_epochs(loader: Any) -> bool:
    """Whether ``set_epoch`` is called in the loader's own ``__iter__``."""
    code = getattr(getattr(type(loader), "__iter__", None), "__code__", None)
    return code is not None and "set_epoch" in code.co_names


def tell_epoch(*candidates: Any, epoch: int = 1) -> list[Any]:
    """Tell all that want to be told that this is another epoch; return which did."""
    asked = [each for each in candidates if callable(getattr(each, "set_epoch", None))]
    for each in asked:
        each.set_epoch(epoch)
    return asked
