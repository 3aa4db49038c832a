"""Putting the objects of an ended execution in the place of those that a new one made.

A script of two hundred steps ends while the audit still wants more. It is executed again, with the
same seed, up to its training loop; what it made there corresponds one to one, in the order of
making, to what it made the first time. Its variables are pointed at the objects of the first
execution, and where a reference cannot be changed (in a tuple, a bound method) the new object is
given the attribute dictionary of its predecessor, so that the two are one in all but identity. The
script trains on with the weights, optimizer state and hooks that the auditor knows.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from nnaudit.errors import is_library, is_ours
from nnaudit.loop.script.frameworks import keeps_the_log, ties_to_run
from nnaudit.loop.script.training_objects import KINDS, Registers
from nnaudit.state.parts import GENERATORS
from nnaudit.targets import callstack

Pair = tuple[Any, Any]
"""An object of the first execution, and its counterpart of the new one."""


def adopt(
    old: Registers, new: Registers, old_helpers: tuple[Any, ...], new_helpers: tuple[Any, ...]
) -> tuple[dict[int, Any], list[Any]]:
    """Put the ``old`` objects in the place of the ``new`` ones.

    Returns the old object for the id of each new one, and the new objects, to keep the ids theirs.

    Raises:
        LookupError: the script made other objects than the first time.
    """
    pairs = [pair for kind in KINDS if kind != "loader" for pair in _counterparts(old, new, kind)]
    pairs += _helper_pairs(old_helpers, new_helpers)
    parameters = [pair for pair in pairs if isinstance(pair[1], nn.Module)]
    tensors = [pair for was, now in parameters for pair in _parameter_pairs(was, now)]
    modes = [(was, now.training) for was, now in parameters]
    for was, now in tensors:
        _clear_alike(was, now)
    for was, now in pairs:
        ties = ties_to_run(now)
        object.__setattr__(now, "__dict__", was.__dict__)
        was.__dict__.update(ties)
        _take_class(was, type(now))
    # What the script has just chosen: the end of the last execution may have left it in eval mode.
    for was, training in modes:
        was.training = training
    generators = _generator_pairs(old_helpers, new_helpers)
    alias = {id(now): was for was, now in [*pairs, *tensors, *generators]}
    kept = [now for _, now in [*pairs, *tensors, *generators]]
    _redirect(kept, alias)
    return alias, kept


def _take_class(was: Any, cls: type) -> None:
    """Make ``was`` an instance of the class that the script has defined anew.

    It asks ``isinstance`` of that one, and pickles whole networks by it.
    """
    if type(was) is not cls:
        with suppress(TypeError):
            object.__setattr__(was, "__class__", cls)


def _clear_alike(was: nn.Parameter, now: nn.Parameter) -> None:
    """Clear the old gradient where the script has just cleared the new one."""
    if now.grad is None:
        was.grad = None
    elif was.grad is not None and not now.grad.any():
        was.grad.zero_()


def _counterparts(old: Registers, new: Registers, kind: str) -> list[Pair]:
    before, after = old.of[kind].all(), new.of[kind].all()
    found, skipped = [], 0
    for i, now in enumerate(after):
        while i + skipped < len(before) and _is_of_an_import(before[i + skipped], now):
            skipped += 1
        if i + skipped >= len(before):
            break
        was = before[i + skipped]
        if now is None or was is None or isinstance(now, torch.jit.ScriptModule):
            continue
        if keeps_the_log(now):
            continue
        if type(now).__qualname__ != type(was).__qualname__:
            raise LookupError(f"{type(now).__name__} where there was {type(was).__name__}")
        found.append((was, now))
    return found


def _is_of_an_import(was: Any, now: Any) -> bool:
    """Whether a library made ``was`` as it was imported, which happens in one execution only.

    Activations that stand ready in a table, for example: they have no state, and ``now`` is
    something else. Where ``now`` is gone already, it has a place of its own nevertheless.
    """
    if now is None or not isinstance(was, nn.Module):
        return False
    if type(now).__qualname__ == type(was).__qualname__:
        return False
    made_by = getattr(sys.modules.get(type(was).__module__), "__file__", None) or ""
    return not was.state_dict() and is_library(made_by)


def _parameter_pairs(was: nn.Module, now: nn.Module) -> Iterator[Pair]:
    for name, parameter in now._parameters.items():
        before = was._parameters.get(name)
        if parameter is not None and before is not None:
            yield before, parameter


def _generator_pairs(old: tuple[Any, ...], new: tuple[Any, ...]) -> list[Pair]:
    """Return the generators of random numbers: where the old ones were is where the run goes on."""
    return [
        (was, now)
        for was, now in _in_pairs(old, new)
        if isinstance(now, GENERATORS) and type(was) is type(now)
    ]


def _helper_pairs(old: tuple[Any, ...], new: tuple[Any, ...]) -> list[Pair]:
    return [
        (was, now)
        for was, now in _in_pairs(old, new)
        if not isinstance(was, GENERATORS)
        and hasattr(was, "__dict__")
        and type(was).__qualname__ == type(now).__qualname__
    ]


def _in_pairs(old: tuple[Any, ...], new: tuple[Any, ...]) -> Iterator[Pair]:
    """Yield what stands at the same place; nothing where there are not as many."""
    if len(old) == len(new):
        yield from zip(old, new, strict=True)


def _redirect(news: list[Any], alias: dict[int, Any]) -> None:
    """Make whatever refers to one of ``news`` refer to its counterpart, as far as that goes."""
    ours = {id(news), id(alias)}
    for holder in gc.get_referrers(*news) if news else ():
        if id(holder) in ours:
            continue
        if type(holder) is list:
            for i, item in enumerate(holder):
                if id(item) in alias:
                    holder[i] = alias[id(item)]
        elif type(holder) is dict:
            for key, item in list(holder.items()):
                if id(item) in alias:
                    holder[key] = alias[id(item)]
        elif isinstance(holder, types.CellType) and id(holder.cell_contents) in alias:
            holder.cell_contents = alias[id(holder.cell_contents)]
    _redirect_frames(alias)


def _redirect_frames(alias: dict[int, Any]) -> None:
    """The same for the local variables of the functions that the script is in."""
    for frame in callstack.frames():
        if is_ours(frame.f_code.co_filename):
            continue
        changes = {
            name: alias[id(value)] for name, value in frame.f_locals.items() if id(value) in alias
        }
        if changes:
            callstack.assign(frame, changes)
