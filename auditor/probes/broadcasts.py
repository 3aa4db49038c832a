"""Elementwise operations of (N, 1) with (N,) in the user's own code, which make (N, N)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
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

_DECIDES = frozenset(
    {
        torch.argmax, Tensor.argmax, torch.max, Tensor.max, torch.round, Tensor.round, torch.gt,
        Tensor.gt, Tensor.__gt__, torch.ge, Tensor.ge, Tensor.__ge__, torch.topk, Tensor.topk,
    }
)  # fmt: skip
"""Functions whose result is a prediction that was decided for."""


class EvalBroadcasts(Probe[tuple[Broadcast, ...]]):
    """Ends an epoch, and looks for decided predictions that are compared with each other's labels.

    ``(N, 1) == (N,)``, where one is made of a decision and the other is not, and N is the number
    of rows that a network was evaluated on: all N x N pairs are compared.
    """

    def measure(self, audit: Audit) -> tuple[Broadcast, ...]:
        """Return the comparisons; none where the end of an epoch cannot be reached.

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
                stack.enter_context(compared)
                loop.next_epoch(batch)
            except UserCodeError:
                return ()
        return tuple(compared.found)


class EvalComparisons(FunctionTap):
    """Listens, while it is entered, to comparisons of decisions made without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Broadcast] = []
        self._rows: set[int] = set()
        self._decided: list[Tensor] = []

    def called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note how many rows a network is evaluated on, and forget the batch before."""
        if torch.is_grad_enabled() and module.training:
            return
        self._decided.clear()
        self._rows.update(each.shape[0] for each in args if isinstance(each, Tensor) and each.ndim)

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Follow decisions, and look at what they are compared with."""
        if not self._rows or torch.is_grad_enabled():
            return result
        given = [each for each in args if isinstance(each, Tensor)]
        made = [any(each is known for known in self._decided) for each in given]
        if func in _EQUALS and len(given) == 2 and made[0] is not made[1]:
            labels = given[made.index(False)]
            if len(torch.unique(labels)) < labels.numel():  # as a list of classes is not
                self._compared(*given)
        elif func in _DECIDES or any(made):
            results = result if isinstance(result, tuple) else (result,)
            self._decided += [each for each in results if isinstance(each, Tensor)]
        return result

    def _compared(self, left: Tensor, right: Tensor) -> None:
        if {left.ndim, right.ndim} != {1, 2}:
            return
        column, flat = (left, right) if left.ndim == 2 else (right, left)
        rows = flat.shape[0]
        if rows in self._rows and rows > 1 and tuple(column.shape) == (rows, 1):
            shapes = (tuple(left.shape), tuple(right.shape))
            self.found.append(Broadcast(shapes, callstack.user_line()))
