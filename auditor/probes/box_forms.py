"""Boxes that torchvision's functions are given: whether their corners are corners."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Needs
from nnaudit.measure.result_tap import ResultTap
from nnaudit.measure.seeding import source_files
from nnaudit.report import Location
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack
from nnaudit.targets.source import source_of

_COMPARING = frozenset(
    {
        "box_iou", "complete_box_iou", "complete_box_iou_loss", "distance_box_iou",
        "distance_box_iou_loss", "generalized_box_iou", "generalized_box_iou_loss",
    }
)  # fmt: skip
"""Functions of torchvision's that take two sets of corners: left, top, right, bottom."""

_BATCHES = 16
"""Validation batches in which the targets are looked for."""

_MOST = 16
"""Calls that are kept."""


@dataclass(frozen=True)
class BoxForm:
    """One comparison of predicted boxes with those of the data.

    Attributes:
        function: of torchvision's.
        trains: it is part of the loss.
        boxes: how many targets it was given.
        inverted: the share of them of which the right side is left of the left one, or the bottom
            above the top: in corners, none.
        location: the user's line.
    """

    function: str
    trains: bool
    boxes: int
    inverted: float
    location: Location | None


class BoxForms(Probe[tuple[BoxForm, ...]]):
    """Watches one step, and the end of an epoch, for such comparisons."""

    steps = 2

    def measure(self, audit: Audit) -> tuple[BoxForm, ...]:
        """Take a step, and let the program validate; nothing where it does not use torchvision.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        files = source_files(loop) if "torchvision.ops" in sys.modules else ()
        if not any("iou" in source_of(file).text for file in files):
            return ()
        tap = _Tap()
        try:
            batch = next(iter(loop.batches()))
            with tap:
                loop.step(batch)
                if tap.calls or not loop.lacks(Needs.VAL_LOADER):
                    loop.next_epoch(batch)
            held = [batch]
            if not loop.lacks(Needs.VAL_LOADER):
                held += [batches.clone(each) for each in islice(loop.val_batches(), _BATCHES)]
        except (UserCodeError, StopIteration):
            return ()
        return tuple(form for call in tap.calls if (form := _form(call, held)) is not None)


@dataclass(frozen=True)
class _Call:
    function: str
    boxes: tuple[Tensor, Tensor]
    grad: tuple[bool, bool]
    location: Location | None


@dataclass(eq=False)
class _Tap(ResultTap):
    """Reads the arguments of torchvision's functions off the stack, while these are at work."""

    calls: list[_Call] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> None:
        """Look whether this is such a function's call, and keep what that was given."""
        if len(self.calls) >= _MOST:
            return
        outermost = None
        for frame in callstack.frames():
            if "torchvision" in frame.f_code.co_filename:
                outermost = frame if frame.f_code.co_name in _COMPARING else outermost
            elif outermost is not None:
                break
        if outermost is None or id(outermost) in self.seen:
            return
        given = callstack.variables(outermost)
        pair = given.get("boxes1"), given.get("boxes2")
        if given.get("fmt", "xyxy") != "xyxy" or not all(isinstance(t, Tensor) for t in pair):
            return
        self.seen.add(id(outermost))
        self.calls.append(
            _Call(
                outermost.f_code.co_name,
                tuple(t.detach().cpu().clone() for t in pair),  # type: ignore[union-attr]
                tuple(t.requires_grad for t in pair),  # type: ignore[union-attr]
                callstack.user_line(),
            )
        )


def _form(call: _Call, held: list[Any]) -> BoxForm | None:
    """Return what the targets of ``call`` look like; None where it is not known which they are."""
    trains = any(call.grad)
    if trains:
        targets = [t for t, grad in zip(call.boxes, call.grad, strict=True) if not grad]
    else:
        targets = [t for t in call.boxes if any(batches.paths_of(each, t) for each in held)]
    if len(targets) != 1 or targets[0].ndim < 2 or targets[0].shape[-1] != 4:
        return None
    boxes = targets[0].reshape(-1, 4).double()
    boxes = boxes[(boxes != 0).any(1) & torch.isfinite(boxes).all(1)]
    if not len(boxes):
        return None
    wrong = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    return BoxForm(call.function, trains, len(boxes), float(wrong.double().mean()), call.location)
