"""Putting the objects of an ended execution in the place of those that a new one made.

A script of two hundred steps ends while the audit still wants more. It is executed again, with the
same seed, up to its training loop; what it made there corresponds one to one, in the order of
making, to what it made the first time. Each new object is given the attribute dictionary of its
predecessor, so that the two are one in all but identity: the script trains on with the weights,
optimizer state and hooks that the auditor knows.
"""

from __future__ import annotations

import gc
from typing import Any

from torch import Tensor, nn

from nnaudit.loop.script.capture import KINDS, Registers


def adopt(
    old: Registers, new: Registers, old_helpers: tuple[Any, ...], new_helpers: tuple[Any, ...]
) -> tuple[dict[int, Any], list[Any]]:
    """Merge ``new`` objects into ``old`` ones.

    Returns the old object for the id of each new one, and the new objects, to keep the ids theirs.

    Raises:
        LookupError: the script made other objects than the first time.
    """
    pairs = [pair for kind in KINDS for pair in _pairs(old, new, kind)]
    modes = [(was, now.training) for was, now in pairs if isinstance(now, nn.Module)]
    tensors = [
        (p, q)
        for was, now in pairs
        if isinstance(now, nn.Module)
        for name, p in now._parameters.items()
        if p is not None and (q := was._parameters.get(name)) is not None
    ]
    replaced = {id(p): q for p, q in tensors}
    keep: list[Tensor] = [p for p, _ in tensors]
    for was, now in [*pairs, *_helper_pairs(old_helpers, new_helpers)]:
        object.__setattr__(now, "__dict__", was.__dict__)
    for was, training in modes:
        was.training = training
    _replace(keep, replaced)
    return {id(now): was for was, now in pairs}, [now for _, now in pairs]


def _pairs(old: Registers, new: Registers, kind: str) -> list[tuple[Any, Any]]:
    before, after = old.of[kind].all(), new.of[kind].all()
    if kind == "loader":
        return []
    found = []
    for i, now in enumerate(after):
        was = before[i] if i < len(before) else None
        if now is None or was is None:
            continue
        if type(now).__qualname__ != type(was).__qualname__:
            raise LookupError(f"{type(now).__name__} where there was {type(was).__name__}")
        if isinstance(now, nn.Module) and isinstance(now, _unshareable()):
            continue
        found.append((was, now))
    return found


def _unshareable() -> tuple[type, ...]:
    import torch

    return (torch.jit.ScriptModule,)


def _helper_pairs(old: tuple[Any, ...], new: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    if len(old) != len(new):
        return []
    return [
        (was, now)
        for was, now in zip(old, new, strict=True)
        if hasattr(was, "__dict__") and type(was).__qualname__ == type(now).__qualname__
    ]


def _replace(keep: list[Tensor], replaced: dict[int, Tensor]) -> None:
    """Replace new parameters by old ones in the lists and dictionaries that still hold them."""
    ours = {id(keep), id(replaced)}
    for holder in gc.get_referrers(*keep) if keep else ():
        if id(holder) in ours:
            continue
        if type(holder) is list:
            for i, item in enumerate(holder):
                if id(item) in replaced and isinstance(item, Tensor):
                    holder[i] = replaced[id(item)]
        elif type(holder) is dict:
            for key, item in list(holder.items()):
                if id(item) in replaced and isinstance(item, Tensor):
                    holder[key] = replaced[id(item)]
