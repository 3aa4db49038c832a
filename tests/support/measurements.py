"""Measurements of a training that never was, for :func:`support.verdicts.verdict`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nnaudit.loop.observer import LossCall
from nnaudit.measure.eval_result import EvalResult
from nnaudit.probes.training_run import EvalPoint, Training

_FUNCTIONS: dict[str, Any] = {
    "cross_entropy": F.cross_entropy,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "bce": F.binary_cross_entropy,
    "mse": F.mse_loss,
}


def loss_call(kind: str, output: Tensor, target: Tensor) -> LossCall:
    """The call of torch's loss function ``kind`` on an output and its target."""
    function = _FUNCTIONS[kind]
    value = function(output, target)
    return LossCall(kind, function, {"input": output, "target": target}, value)


def eval_result(kind: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> EvalResult:
    """What a network that gives these outputs for these targets, batch by batch, looks like."""
    calls = tuple(loss_call(kind, output, target) for output, target in pairs)
    return EvalResult(
        losses=tuple(float(call.value) for call in calls if call.value is not None),
        calls=calls,
        outputs=pairs[0][0] if pairs else None,
    )


def training(losses: Sequence[float] = (), **parts: Any) -> Training:
    """A run with these losses at a constant rate of 0.1, with ``parts`` of it otherwise.

    What is not given is as little as there can be: one epoch, rows of one, no calls, no known
    constant, no validation batches, no evaluation.
    """
    n = len(losses)
    usual: dict[str, Any] = {
        "losses": tuple(losses),
        "rates": (0.1,) * n,
        "epoch_starts": (0,),
        "rows": (1,) * n,
        "calls": {},
        "constant": math.nan,
        "fixed": (),
        "val": (),
        "val_whole": False,
        "moments": (),
    }
    return Training(**usual | parts)


def at_the_end(fixed: EvalResult | None = None, val: EvalResult | None = None) -> Any:
    """The :attr:`Training.moments` of a run of 40 steps that was looked at after the last."""
    return (EvalPoint(40, fixed or EvalResult(), val or EvalResult()),)
