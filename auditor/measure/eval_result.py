"""What the network makes of a few batches in eval mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Forward, Loop, seed_everything
from nnaudit.loop.losses import LossCall
from nnaudit.measure.memory import slimmed
from nnaudit.targets import batch as batches
from nnaudit.training.loss_reader import LossReader

_OUTPUT_BYTES = 8 * 2**20

DRAWS = 8
"""Evaluations that the loss of a batch is the mean of where the loss itself draws numbers (mixup,
noise levels of a diffusion model): one draw serves all rows of a batch, so that more rows do not
average it out."""


@dataclass(frozen=True)
class EvalResult:
    """What the network makes of some batches in eval mode, without an update.

    Attributes:
        losses: of each batch, by the user's own loss, the mean over several draws where the loss
            draws numbers; empty where that cannot be computed.
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


def draws_needed(loop: Loop, batch: Any, seed: int = 0) -> int:
    """Return how often a batch is to be evaluated: once where its loss draws no numbers.

    The random state is moved; the caller preserves it.
    """
    try:
        losses = {_evaluated(loop, batch, seed + i).loss for i in range(2)}
    except UserCodeError:
        return 1
    return DRAWS if len(losses) > 1 else 1


def mean_loss(audit: Audit, some: Sequence[Any], *, draws: int = 1, train: bool = False) -> float:
    """Return the mean loss of ``some`` batches, each under the same ``draws``; NaN for unknown.

    Means of other batches, moments or modes are comparable for that. The random state is moved.

    Raises:
        UserCodeError: the user's code raised.
        OutOfBudgetError: the time is used up.
    """
    losses = []
    for batch in some:
        audit.clock.check()
        loss = _loss(audit.loop, batch, draws=draws, seed=audit.seed, train=train)
        losses.append(math.nan if loss is None else loss)
    return sum(losses) / len(losses) if losses else math.nan


def _loss(loop: Loop, batch: Any, *, draws: int, seed: int, train: bool = False) -> float | None:
    losses = [_evaluated(loop, batch, seed + i, train=train).loss for i in range(draws)]
    known = [loss for loss in losses if loss is not None]
    return sum(known) / draws if len(known) == draws else None


def _evaluated(loop: Loop, batch: Any, seed: int, *, train: bool = False) -> Forward:
    seed_everything(seed)
    return loop.forward(batch, train=train)


def evaluate_batches(
    loop: Loop, some: Sequence[Any], reader: LossReader, *, draws: int = 1, seed: int = 0
) -> EvalResult:
    """Run the network on ``some`` batches in eval mode; what cannot be computed is left out.

    ``reader`` says which call the loss of each is; it may have learnt that on other batches.
    ``draws`` is what :func:`draws_needed` says. The random state is moved.
    """
    losses: list[float] = []
    calls: list[LossCall] = []
    first: Any = None
    for i, batch in enumerate(some):
        try:
            forward = _evaluated(loop, batch, seed)
            loss = forward.loss if draws == 1 else _loss(loop, batch, draws=draws, seed=seed)
        except UserCodeError:
            return EvalResult(outputs=first)
        if not i and sum(t.nbytes for _, t in batches.tensors(forward.output)) <= _OUTPUT_BYTES:
            first = batches.clone(forward.output)
        if loss is None:
            return EvalResult(outputs=first)
        losses.append(loss)
        call = reader.call(batch, forward.observation)
        calls += [slimmed(call)] if call is not None else []
    return EvalResult(tuple(losses), tuple(calls) if len(calls) == len(losses) else (), first)
