"""What accelerate was told of a training: batches for a step, and what it has prepared."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from nnaudit.loop.base import Loop
from nnaudit.loop.trace import parameters_of
from nnaudit.measure.living import living


@dataclass(frozen=True)
class Declared:
    """Accumulation that accelerate was asked for.

    Attributes:
        count: batches for one optimizer step; each loss is divided by it.
        prepared: the optimizer of the training went through ``accelerator.prepare()``.
    """

    count: int
    prepared: bool


def declared_accumulation(loop: Loop) -> Declared | None:
    """Return what the Accelerator says that prepared the network of ``loop``; None for none.

    Only more than one batch for a step is accumulation.
    """
    kind = getattr(sys.modules.get("accelerate"), "Accelerator", None)
    if kind is None:
        return None
    trained = {id(p) for optimizer in loop.optimizers for p in parameters_of(optimizer)}
    for each in living(kind):
        models = getattr(each, "_models", ())
        ours = any(id(p) in trained for model in models for p in model.parameters())
        count = int(getattr(each, "gradient_accumulation_steps", 1))
        if ours and count > 1:
            return Declared(count, all(_is_prepared(each, held) for held in loop.optimizers))
    return None


def _is_prepared(accelerator: Any, optimizer: Any) -> bool:
    known = list(getattr(accelerator, "_optimizers", ()))
    known += [getattr(each, "optimizer", None) for each in known]
    return any(optimizer is each or getattr(optimizer, "optimizer", 0) is each for each in known)
