"""Softmaxes that the program takes of its model's output, outside of torch's loss functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.control import output_replaced
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved
from nnaudit.targets import callstack

_SOFTMAXES = frozenset(
    {
        F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, Tensor.softmax,
        Tensor.log_softmax,
    }
)  # fmt: skip


@dataclass(frozen=True)
class OutputSoftmax:
    """One softmax, or its logarithm, of the model's output.

    Attributes:
        shape: of the output, (N, C).
        dim: over which dimension it is taken.
        location: the user's line.
    """

    shape: tuple[int, ...]
    dim: int
    location: Location | None


class OutputSoftmaxes(Probe[tuple[OutputSoftmax, ...]]):
    """Takes one step, and looks what is made of outputs with two dimensions."""

    steps = 8

    def measure(self, audit: Audit) -> tuple[OutputSoftmax, ...]:
        """Return the softmaxes in order; none where the step raises.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop, tap = audit.loop, _Tap()
        if isinstance(loop.model, torch.jit.ScriptModule):
            return ()  # no hook can be put on it
        batch = next(iter(consecutive_batches(loop, 1)), None)
        try:
            with preserved(loop.subjects), output_replaced(loop, tap.seen), tap:
                loop.step(batch)
        except UserCodeError:
            return ()
        return tuple(tap.found)


class _Tap(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[OutputSoftmax] = []
        self._outputs: list[Tensor] = []

    def seen(self, output: Tensor) -> Tensor:
        if output.ndim == 2 and output.requires_grad:
            self._outputs.append(output)
        return output

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SOFTMAXES:
            given = args[0] if args else kwargs.get("input")
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if isinstance(dim, int) and any(given is output for output in self._outputs):
                shape = tuple(given.shape)  # type: ignore[union-attr]
                self.found.append(OutputSoftmax(shape, dim % len(shape), callstack.user_line()))
        return func(*args, **kwargs)
