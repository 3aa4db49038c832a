"""Rows that a program holds out by a mask, as of a graph's nodes, and those it trains on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.losses import LOSS_FUNCTIONS
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.result_tap import ResultTap
from nnaudit.report import Location
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack

STEPS = 25
"""Steps within which a program that trains on all rows at once looks at those it holds out."""

_SECONDS = 10.0
_FEWEST = 16
_KEPT = 256

_MOST = 2**22
"""Numbers of a tensor up to which it is told by its content."""

_HELD_OUT = re.compile(r"(^|_)(val|valid|validation|test|dev|eval|heldout|held)(_|\d|$)")
_INDEXING = frozenset({"__getitem__", "index_select", "masked_select"})
_MASKS = ("val_mask", "test_mask", "valid_mask", "val_idx", "test_idx", "val_index", "test_index")
"""Attributes by which libraries for graphs keep masks."""


@dataclass(frozen=True)
class MaskedSplit:
    """Rows that are held out by a mask, against those whose targets the loss was given.

    Attributes:
        name: what the user's code calls the mask.
        held_out: how many rows it has.
        trained: how many of these the loss was given.
        rows: how many there are in all.
        location: the line that calls the loss.
    """

    name: str
    held_out: int
    trained: int
    rows: int
    location: Location | None


class MaskedRows(Probe[tuple[MaskedSplit, ...]]):
    """Watches steps, and what is evaluated between them, for masks over the rows of the targets."""

    def measure(self, audit: Audit) -> tuple[MaskedSplit, ...]:
        """Return what was seen of each mask that is named after held-out rows.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        tap, begun = Tap(), time.monotonic()
        some = list(consecutive_batches(audit.loop, 1))
        try:
            with tap:
                for _ in range(STEPS):
                    audit.clock.check()
                    audit.loop.step(some[0])
                    if time.monotonic() - begun > _SECONDS:
                        break
        except UserCodeError:
            return ()
        return tuple(tap.found())


@dataclass(frozen=True)
class _Held:
    name: str
    rows: Tensor
    base: tuple[str, ...]


class Tap(ResultTap):
    """Notes the rows that losses are given, and those that are looked at without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[tuple[str, str], _Held] = {}
        self._chosen: dict[int, tuple[Tensor, str, Tensor]] = {}
        self._compared: dict[int, tuple[Tensor, tuple[str, ...]]] = {}
        self._trained: dict[str, Tensor] = {}
        self._lines: dict[str, Location | None] = {}

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Note losses, choices of rows and comparisons."""
        name = getattr(func, "__name__", "")
        if func in LOSS_FUNCTIONS and made.requires_grad and made.numel() == 1:
            target = kwargs.get("target", args[1] if len(args) > 1 else None)
            if isinstance(target, Tensor) and not target.requires_grad:
                self._given(target, kwargs.get("ignore_index", -100))
        elif name in _INDEXING and len(args) >= 2 and isinstance(args[0], Tensor):
            rows = _rows(args[0], args[-1])
            if rows is not None:
                self._indexed(args[0], args[-1], rows, made)
        elif name in ("eq", "__eq__") and not torch.is_grad_enabled() and made.ndim:
            whose = tuple(_content(each) for each in args if isinstance(each, Tensor))
            if len(self._compared) < _KEPT:
                self._compared[id(made)] = made, whose

    def _indexed(self, base: Tensor, index: Tensor, rows: Tensor, made: Tensor) -> None:
        if torch.is_grad_enabled():
            if not base.requires_grad and len(self._chosen) < _KEPT:
                self._chosen[id(made)] = made, _content(base), rows
            return
        name = _held_out_name(index)
        if name and len(self._held) < _KEPT:
            content = _content(base)
            whose = (content, *self._compared.get(id(base), (base, ()))[1])
            self._held[(name, content)] = _Held(name, rows, whose)

    def _given(self, target: Tensor, ignored: Any) -> None:
        """Note the rows of the targets that a loss was given."""
        if id(target) in self._chosen:
            _, base, rows = self._chosen[id(target)]
        elif target.ndim and len(target) >= _FEWEST:
            base, rows = _content(target), torch.ones(len(target), dtype=torch.bool)
            if target.ndim == 1 and not target.is_floating_point() and isinstance(ignored, int):
                rows = (target != ignored).cpu()
        else:
            return
        before = self._trained.get(base)
        fits = before is not None and before.shape == rows.shape
        self._trained[base] = before | rows if before is not None and fits else rows
        self._lines.setdefault(base, callstack.user_line())

    def found(self) -> Iterator[MaskedSplit]:
        """Yield, for each mask of held-out rows, how many the losses were given."""
        seen = set[str]()
        for held in self._held.values():
            for base in held.base:
                trained = self._trained.get(base)
                if trained is None or trained.shape != held.rows.shape or held.name in seen:
                    continue
                seen.add(held.name)
                both = int((trained & held.rows).sum())
                yield MaskedSplit(
                    held.name, int(held.rows.sum()), both, len(trained), self._lines[base]
                )


def _content(tensor: Tensor) -> str:
    """Return what tells equal tensors: targets are the same data in another place of memory.

    A script's tensors may be handed to it anew in each step, and freed memory is given to others.
    """
    if tensor.numel() > _MOST or tensor.layout is not torch.strided:
        return f"{id(tensor)}"
    return batches.digest(tensor.detach())


def _rows(base: Tensor, index: Any) -> Tensor | None:
    """Return which rows of ``base`` the ``index`` chooses, as a mask; None for other indices."""
    if not isinstance(index, Tensor) or index.ndim != 1 or base.ndim == 0:
        return None
    if len(base) < _FEWEST or not index.numel():
        return None
    if index.dtype == torch.bool:
        return index.cpu().clone() if len(index) == len(base) else None
    if index.dtype != torch.int64 or int(index.min()) < 0 or int(index.max()) >= len(base):
        return None
    chosen = torch.zeros(len(base), dtype=torch.bool)
    chosen[index.cpu()] = True
    return chosen


def _held_out_name(index: Tensor) -> str:
    """Return the name of held-out rows by which the user's code holds ``index``; else empty."""
    for frame in callstack.user_frames():
        for values in (frame.f_locals, frame.f_globals):
            for name, value in list(values.items()):
                if value is index and _HELD_OUT.search(name.lower()):
                    return str(name)
                kept = vars(value) if hasattr(value, "__dict__") else {}
                if "_store" in kept or any(mask in kept for mask in _MASKS):
                    for mask in _MASKS:
                        if getattr(value, mask, None) is index:
                            return f"{name}.{mask}"
    return ""
