"""Letting go of what would fill the memory."""

from __future__ import annotations

from torch import Tensor

from nnaudit.loop.losses import LossCall
from nnaudit.loop.observation import Observation
from nnaudit.targets import batch as batches

MOST_BYTES = 128 * 2**20
"""Of each loss call's input, this much is kept: logits over a vocabulary are large."""


def slimmed(call: LossCall) -> LossCall:
    """Return ``call`` on as many rows as :data:`MOST_BYTES` of its input hold."""
    value = call.arguments.get("input")
    if not isinstance(value, Tensor) or value.ndim == 0 or value.nbytes <= MOST_BYTES:
        return call
    return call.first_rows(max(1, MOST_BYTES * value.shape[0] // value.nbytes))


def slim(observation: Observation | None, *, keep_output: bool) -> None:
    """Let go of what would fill the memory: a language model's logits take gigabytes."""
    if observation is None:
        return
    observation.loss_calls[:] = [slimmed(call) for call in observation.loss_calls]
    large = sum(t.nbytes for _, t in batches.tensors(observation.output)) > MOST_BYTES
    if not keep_output or large:
        observation.output = None
