"""The highest learning rate that an optimizer is to reach, told from its schedule."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from nnaudit.loop.base import Loop

_ALL, _FURTHEST, _APART = 100, 1_000_000, 1.05
"""A schedule is asked for so many steps, and from there on by this ratio, up to the furthest."""


def planned_lr(loop: Loop, group: dict[str, Any]) -> float:
    """Return the highest learning rate that a parameter group of ``loop`` is known to reach.

    It is 0 where the optimizer finds its own (Adafactor's ``lr=None``).

    The group's ``max_lr`` (OneCycle, Cyclic) or ``initial_lr`` (set by every scheduler), else its
    ``lr`` now. A schedule that is a formula may stay below ``initial_lr`` throughout: in "Attention
    Is All You Need" that is 1, and the rate never more than 0.0007. One that rises above it says
    nothing: it may be written for the steps of the run only.
    """
    made_with = float(group.get("initial_lr") or 0.0)
    formula = _by_formula(loop, group)
    reached = made_with if formula is None else min(made_with, formula)
    return max(reached, *(float(group.get(key) or 0.0) for key in ("lr", "max_lr")))


def planned_rise(loop: Loop) -> bool:
    """Whether the plan of the learning rate has a peak above where it is now."""
    groups = [group for optimizer in loop.optimizers for group in optimizer.param_groups]
    return any(float(group["lr"] or 0.0) < 0.99 * planned_lr(loop, group) for group in groups)


def _by_formula(loop: Loop, group: dict[str, Any]) -> float | None:
    """Return the highest rate that the only schedule of ``group`` computes; None without one."""
    schedulers = [
        (scheduler, number)
        for scheduler in loop.schedulers
        for number, other in enumerate(_groups(scheduler))
        if other is group
    ]
    if len(schedulers) != 1:
        return None
    formula = _formula(*schedulers[0])
    if formula is None:
        return None
    rates = []
    for step in _steps():
        with suppress(Exception):  # the user's code, beyond the end of the plan
            rates.append(formula(step))
    peak = max((rate for rate in rates if math.isfinite(rate)), default=0.0)
    return peak if peak > 0.0 else None


def _groups(scheduler: Any) -> list[dict[str, Any]]:
    return list(getattr(getattr(scheduler, "optimizer", None), "param_groups", ()))


def _formula(scheduler: Any, number: int) -> Callable[[int], float] | None:
    """Return what gives a group's rate at any step; None for torch's own classes.

    What those are made with is what they reach, or they say ``max_lr``.
    """
    if isinstance(scheduler, LambdaLR):
        factor, base = scheduler.lr_lambdas[number], float(scheduler.base_lrs[number])
        return lambda step: base * float(factor(step))
    if not isinstance(scheduler, LRScheduler) or type(scheduler).__module__.startswith("torch."):
        return None
    probe = copy.copy(scheduler)
    probe.optimizer = copy.copy(scheduler.optimizer)
    probe.optimizer.param_groups = [{**group} for group in scheduler.optimizer.param_groups]

    def rate(step: int) -> float:
        probe.last_epoch, probe._step_count = step, step + 1
        return float(probe.get_lr()[number])

    return rate


def _steps() -> Iterator[int]:
    far = (round(_ALL * _APART**i) for i in range(math.ceil(math.log(_FURTHEST / _ALL, _APART))))
    return itertools.chain(range(_ALL), far)
