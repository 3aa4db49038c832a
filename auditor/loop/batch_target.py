"""What the output for a batch is compared with."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import TARGET_NAMES, ModelInputs


def target_of(loop: Loop, batch: Any) -> Any:
    """Return the target of ``batch``; None where only a ``training_step`` understands the batch."""
    try:
        return loop.split_batch(batch).target
    except UserCodeError:
        return None


def inputs_and_target(loop: Loop, batch: Any) -> ModelInputs:
    """Take ``batch`` apart to be looked at; as a whole, where only the user's step understands it.

    What a model is given as its target, to compute the loss itself (``labels=...``, as those of
    transformers are), is no input then.
    """
    try:
        fed = loop.split_batch(batch)
    except UserCodeError:
        return ModelInputs((batch,), {}, None)
    given = {
        name: value
        for name, value in fed.kwargs.items()
        if name in TARGET_NAMES and _is_target(value, fed.target)
    }
    rest = {name: value for name, value in fed.kwargs.items() if name not in given}
    if not given or not (fed.args or rest):
        return fed
    return ModelInputs(fed.args, rest, next(iter(given.values())))


def _is_target(value: Any, target: Any) -> bool:
    if value is target:
        return value is not None
    if not isinstance(value, Tensor) or not isinstance(target, Tensor):
        return False
    return batches.same_values(value, target)
