"""Elementwise operations of (N, 1) with (N,) in the user's own code, which make (N, N)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.loop.observation import Broadcast
from nnaudit.measure.result_tap import FunctionTap
from nnaudit.probes.first_steps import First, initial_steps
from nnaudit.report import Location
from nnaudit.targets import batch as batches
from nnaudit.targets import callstack


def broadcasts_of_rows(audit: Audit, first: First) -> Iterator[Broadcast]:
    """Yield those of the first step that has some whose N is the rows of the batch.

    With a row less in the batch they are of (N - 1, 1) and (N - 1,): a comparison with all classes
    stays as wide as it was. A product counts where it is by a field of the batch, or by one minus
    it, as in a cross-entropy that is written out: weights of all pairs are made some other way.
    """
    for batch, seen in zip(first.batches, first.observations, strict=False):
        if seen.broadcasts:
            lines = _lines_with_fewer_rows(audit, batch)
            for each in seen.broadcasts:
                if each.factor is not None and not _is_of_batch(each.factor, batch):
                    continue
                if each.location in lines and _differ(each, lines[each.location]):
                    yield each
            return


def _is_of_batch(factor: Tensor, batch: Any) -> bool:
    """Whether ``factor`` (N,) is a field of ``batch``, or one minus it."""
    given = factor.double()
    for _, tensor in batches.tensors(batch):
        if tensor.numel() == given.numel() and not tensor.is_complex():
            field = tensor.detach().reshape(-1).to(given)
            if torch.equal(field, given) or torch.equal(1 - field, given):
                return True
    return False


def _lines_with_fewer_rows(audit: Audit, batch: Any) -> dict[Location | None, Broadcast]:
    try:
        fewer = batches.take(batch, batches.size(batch) - 1)
        step = next(initial_steps(audit, [fewer]))
    except (batches.NotSliceableError, UserCodeError):
        return {}
    seen = step.observation
    return {each.location: each for each in seen.broadcasts} if seen is not None else {}


def _differ(one: Broadcast, other: Broadcast) -> bool:
    return one.shapes[0][0] != other.shapes[0][0] and one.shapes[1][0] != other.shapes[1][0]


# --- between two epochs --------------------------------------------------------------------------

_EQUALS = frozenset({torch.eq, Tensor.eq, Tensor.__eq__})

_SUBTRACTS = frozenset(
    {
        torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.subtract, F.mse_loss,
        F.l1_loss, F.smooth_l1_loss, F.huber_loss,
    }
)  # fmt: skip

_DECIDES = frozenset(
    {
        torch.argmax, Tensor.argmax, torch.max, Tensor.max, torch.round, Tensor.round, torch.gt,
        Tensor.gt, Tensor.__gt__, torch.ge, Tensor.ge, Tensor.__ge__, torch.topk, Tensor.topk,
    }
)  # fmt: skip
"""Functions whose result is a prediction that was decided for."""

_MAXIMA = frozenset({torch.argmax, Tensor.argmax, torch.max, Tensor.max})

_ABOVE = frozenset({torch.gt, Tensor.gt, Tensor.__gt__, torch.ge, Tensor.ge, Tensor.__ge__})

_MOVES = frozenset(
    {
        torch.squeeze, Tensor.squeeze, torch.flatten, Tensor.flatten, Tensor.view, Tensor.ravel,
        torch.reshape, Tensor.reshape, Tensor.detach, Tensor.cpu, Tensor.float, Tensor.to,
        Tensor.__getitem__, Tensor.clone,
    }
)  # fmt: skip
"""Functions that leave a number what it is."""


_MOST = 3
"""Differences that are kept, and validation batches that their targets are looked for in."""


@dataclass(frozen=True)
class Evaluated:
    """What is done to predictions in validation.

    Attributes:
        pairs: comparisons of all with all.
        of_one: the lines that take the largest of a single output.
        halved: the lines that ask which outputs are above 0.5, of outputs that also lie outside of
            0 to 1.
    """

    pairs: tuple[Broadcast, ...] = ()
    of_one: tuple[Location | None, ...] = ()
    halved: tuple[Location | None, ...] = ()


class EvalBroadcasts(Probe[Evaluated]):
    """Ends an epoch, and looks for predictions that are compared with each other's labels.

    ``(N, 1) == (N,)``, where one is made of a decision and the other is not, and N is the number
    of rows that a network was evaluated on: all N x N pairs are compared. So are those of
    ``(N, 1) - (N,)``, where one is made of the network's output and the other is a field of the
    batch. And it looks for an index of the largest output where there is one.
    """

    def measure(self, audit: Audit) -> Evaluated:
        """Return what was seen; nothing where the end of an epoch cannot be reached.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop, compared = audit.loop, EvalComparisons()
        audit.clock.check()
        with ExitStack() as stack:
            try:
                batch = next(iter(loop.batches()))
                loop.step(batch)
                for model in loop.models:
                    if not isinstance(model, torch.jit.ScriptModule):
                        stack.callback(model.register_forward_pre_hook(compared.called).remove)
                        stack.callback(model.register_forward_hook(compared.returned).remove)
                stack.enter_context(compared)
                loop.next_epoch(batch)
            except UserCodeError:
                return Evaluated()
        return Evaluated(
            (*compared.found, *_of_fields(loop, compared.differences)),
            tuple(compared.of_one),
            tuple(compared.halved),
        )


def _of_fields(loop: Loop, differences: Sequence[tuple[Broadcast, Tensor]]) -> Iterator[Broadcast]:
    """Yield the differences whose second operand is a field of a validation batch."""
    if not differences or loop.lacks(Needs.VAL_LOADER):
        return
    held = [batches.clone(batch) for batch in islice(loop.val_batches(), _MOST)]
    for each, target in differences:
        if any(batches.paths_of(batch, target) for batch in held):
            yield each


class EvalComparisons(FunctionTap):
    """Listens, while it is entered, to comparisons of predictions made without gradients.

    Attributes:
        found: comparisons of decisions with labels.
        differences: of outputs and other tensors, and a copy of the latter.
        of_one: lines that take the largest along an axis of one output.
        halved: lines that compare outputs, some of them outside of 0 to 1, with 0.5.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Broadcast] = []
        self.differences: list[tuple[Broadcast, Tensor]] = []
        self.of_one: list[Location | None] = []
        self.halved: list[Location | None] = []
        self._rows: set[int] = set()
        self._decided: list[Tensor] = []
        self._predicted: list[Tensor] = []
        self._returned: list[Tensor] = []

    def called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note how many rows a network is evaluated on, and forget the batch before."""
        if torch.is_grad_enabled() and module.training:
            return
        self._decided.clear()
        self._predicted.clear()
        self._returned.clear()
        self._rows.update(each.shape[0] for each in args if isinstance(each, Tensor) and each.ndim)

    def returned(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note what a network predicts."""
        if not (torch.is_grad_enabled() and module.training):
            made = [tensor for _, tensor in batches.tensors(output)]
            self._predicted += made
            self._returned += made

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Follow decisions, and look at what they are compared with."""
        if not self._rows or torch.is_grad_enabled():
            return result
        given = [each for each in args if isinstance(each, Tensor)]
        made = [any(each is known for known in self._decided) for each in given]
        if func in _EQUALS and len(given) == 2 and made[0] is not made[1]:
            labels = given[made.index(False)]
            if len(torch.unique(labels)) < labels.numel():  # as a list of classes is not
                self.found += [seen] if (seen := self._pairs(*given)) is not None else []
        elif func in _DECIDES or any(made):
            if func in _MAXIMA and _among(given, self._predicted):
                axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
                single = type(axis) is int and given[0].ndim > 1 and given[0].shape[axis] == 1
                self.of_one += [callstack.user_line()] if single else []
            elif func in _ABOVE and _among(given, self._returned) and _is_half(args[1:]):
                outside = bool(((given[0] < 0) | (given[0] > 1)).any())
                self.halved += [callstack.user_line()] if outside else []
            results = result if isinstance(result, tuple) else (result,)
            self._decided += [each for each in results if isinstance(each, Tensor)]
        elif isinstance(result, Tensor):
            self._followed(func, given, result)
        return result

    def _followed(self, func: Any, given: list[Tensor], result: Tensor) -> None:
        """Follow predictions, and look at what they are subtracted from."""
        made = [any(each is known for known in self._predicted) for each in given]
        if func in _SUBTRACTS and len(given) == 2 and made[0] is not made[1]:
            seen, target = self._pairs(*given), given[made.index(False)]
            if seen is not None and len(self.differences) < _MOST:
                self.differences.append((seen, target.detach().clone()))
        elif any(made):
            self._predicted.append(result)
            if func in _MOVES and _among(given, self._returned):
                self._returned.append(result)

    def _pairs(self, left: Tensor, right: Tensor) -> Broadcast | None:
        """Return what is computed of all pairs of rows; None where it is not."""
        if {left.ndim, right.ndim} != {1, 2}:
            return None
        column, flat = (left, right) if left.ndim == 2 else (right, left)
        rows = flat.shape[0]
        if rows not in self._rows or rows < 2 or tuple(column.shape) != (rows, 1):
            return None
        return Broadcast((tuple(left.shape), tuple(right.shape)), callstack.user_line())


def _is_half(limits: Sequence[Any]) -> bool:
    return any(isinstance(limit, float) and limit == 0.5 for limit in limits)


def _among(given: Sequence[Tensor], known: Sequence[Tensor]) -> bool:
    """Whether the first of ``given`` is one of ``known``."""
    return bool(given) and any(given[0] is each for each in known)
