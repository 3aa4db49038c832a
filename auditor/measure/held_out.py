"""Training on some rows of the stream, and what the network then says of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnaudit.context import Audit
from nnaudit.errors import UserCodeError
from nnaudit.loop.control import constant_lr
from nnaudit.measure.eval_result import EvalResult, draws_needed, evaluate_batches
from nnaudit.measure.run_length import SECONDS, STEPS
from nnaudit.measure.subset_choice import capture
from nnaudit.state.snapshot import preserved
from nnaudit.targets import batch as batches
from nnaudit.training.loss_reader import LossReader
from nnaudit.training.stopwatch import Stopwatch

ROWS = 768
"""Rows to train on, and up to two thirds as many that are held out."""

_FEWEST = 4


@dataclass(frozen=True)
class HeldOut:
    """What came of it.

    Attributes:
        trained, unseen: batches of the stream; no batch is in both.
        on_trained, on_unseen: the network after training, in eval mode, on some of the trained
            and on the unseen ones.
        losses: of the steps.
        cut: there was no time for all of them.
    """

    trained: tuple[Any, ...]
    unseen: tuple[Any, ...]
    on_trained: EvalResult
    on_unseen: EvalResult
    losses: tuple[float, ...]
    cut: bool


def held_out_run(audit: Audit, *, steps: int = 2 * STEPS) -> HeldOut | None:
    """Train on three fifths of up to 1280 rows of an epoch; None with too few batches.

    The state is put back. Batches are as the loader made them, augmentation frozen in them.

    Raises:
        UserCodeError: the first step raised.
        OutOfBudgetError: the time is used up.
    """
    loop = audit.loop
    with preserved(loop.subjects):
        parts = capture(loop, 512, rows=ROWS * 5 / 3)
        if len(parts) < _FEWEST:
            return None
        cut_at = max(2, round(0.6 * len(parts)))
        trained, unseen = parts[:cut_at], parts[cut_at:]
        losses, cut = _train(audit, trained, steps)
        if not losses or not math.isfinite(losses[-1]):
            return None
        reader = LossReader(loop)
        draws = draws_needed(loop, unseen[0], audit.seed)
        on_unseen, on_trained = (
            evaluate_batches(loop, some, reader, draws=draws, seed=audit.seed)
            for some in (unseen, trained[: len(unseen)])
        )
    return HeldOut(tuple(trained), tuple(unseen), on_trained, on_unseen, tuple(losses), cut)


def _train(audit: Audit, parts: Sequence[Any], steps: int) -> tuple[list[float], bool]:
    order, watch = np.random.default_rng(audit.seed), Stopwatch()
    losses: list[float] = []
    with constant_lr(audit.loop):
        while len(losses) < steps:
            for part in order.permutation(len(parts)):
                audit.clock.check()
                try:
                    losses.append(audit.loop.step(batches.clone(parts[int(part)])).loss)
                except UserCodeError:
                    if not losses:
                        raise
                    return losses, True
                if watch.seconds > SECONDS:
                    return losses, True
                if len(losses) >= steps:
                    break
    return losses, False
