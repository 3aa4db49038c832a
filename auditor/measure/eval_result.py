"""What the network makes of a few batches in eval mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.loop.losses import LossCall
from nnaudit.measure.memory import slimmed
from nnaudit.targets import batch as batches
from nnaudit.training.loss_reader import LossReader

_OUTPUT_BYTES = 8 * 2**20


@dataclass(frozen=True)
class EvalResult:
    """What the network makes of some batches in eval mode, without an update.

    Attributes:
        losses: of each batch, by the user's own loss; empty where that cannot be computed.
        calls: the torch loss function that made each, with its input (the predictions, as many
            rows as fit into memory) and target; empty where the loss is not one call.
        outputs: what the model returned for the first batch, detached; None where it is large.
    """

    losses: tuple[float, ...] = ()
    calls: tuple[LossCall, ...] = ()
    outputs: Any = None

    @property
    def loss(self) -> float:
        """The mean over the batches; NaN without any."""
        return sum(self.losses) / len(self.losses) if self.losses else math.nan


def evaluate_batches(loop: Loop, some: Sequence[Any], reader: LossReader) -> EvalResult:
    """Run the network on ``some`` batches in eval mode; what cannot be computed is left out.

    ``reader`` says which call the loss of each is; it may have learnt that on other batches.
    """
    losses: list[float] = []
    calls: list[LossCall] = []
    first: Any = None
    for i, batch in enumerate(some):
        try:
            forward = loop.forward(batch)
        except UserCodeError:
            return EvalResult(outputs=first)
        if not i and sum(t.nbytes for _, t in batches.tensors(forward.output)) <= _OUTPUT_BYTES:
            first = batches.clone(forward.output)
        if forward.loss is None:
            return EvalResult(outputs=first)
        losses.append(forward.loss)
        call = reader.call(batch, forward.observation)
        calls += [slimmed(call)] if call is not None else []
    return EvalResult(tuple(losses), tuple(calls) if len(calls) == len(losses) else (), first)
