"""The learning rates that each scheduler will give, found by stepping it without training."""

from __future__ import annotations

import ast
import math
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nnaudit.context import Audit, Probe
from nnaudit.errors import describe, is_user
from nnaudit.loop.base import Loop
from nnaudit.report import Location
from nnaudit.targets.source import source_of

_FALLEN = 0.15
"""Share of the peak below which a schedule has come to its end: a tenth is a usual last rate."""

LENGTH = 2_000
"""Values looked at: the steps of a short run, or the epochs of any."""


@dataclass(frozen=True)
class Plan:
    """One scheduler's learning rates.

    Attributes:
        number: which of the loop's schedulers it is.
        scheduler: its class.
        arguments: its settings, by name.
        rates: the highest group's rate before each step of the scheduler, the present one first.
        ended: what the scheduler raised at the end of ``rates``; empty when it went on.
        unknown: why there are no rates: it needs a metric, or an argument.
        base: the highest rate that the optimizer was made with; 0 when the scheduler does not say.
        unused: the variable that it was assigned to is never read, but to be shown or saved.
        metric: what it follows, as the user's text calls it; empty where it follows none, or where
            the text does not say.
        seeks: what it takes for an improvement of that: ``min`` or ``max``.
    """

    number: int
    scheduler: str
    arguments: dict[str, float]
    rates: tuple[float, ...]
    ended: str = ""
    unknown: str = ""
    base: float = 0.0
    unused: bool = False
    metric: str = ""
    seeks: str = ""

    @property
    def peak(self) -> float:
        """The highest finite rate."""
        return max((rate for rate in self.rates if math.isfinite(rate)), default=0.0)

    @property
    def end(self) -> int | None:
        """How many steps the plan is made for: what it was told, or until it stops falling."""
        for name in ("T_max", "total_steps"):
            if self.arguments.get(name, 0.0) > 0.0:
                return round(self.arguments[name])
        top = self.rates.index(self.peak) if self.peak in self.rates else len(self.rates)
        rest = list(enumerate(self.rates))[top:]
        low = next((i for i, rate in rest[:-1] if self.rates[i + 1] >= rate < self.peak), None)
        falls = low is not None and self.rates[low] < _FALLEN * self.peak
        return low if falls else None

    def dead_after(self, share: float) -> int | None:
        """Return from where on every rate is below ``share`` of the peak; None if it never is."""
        alive = [i for i, rate in enumerate(self.rates) if not rate < share * self.peak]
        end = (alive[-1] + 1) if alive else 0
        return end if end < len(self.rates) else None


class LearningRatePlan(Probe[tuple[Plan, ...]]):
    """Steps every scheduler :data:`LENGTH` times, by itself."""

    steps = 5

    def measure(self, audit: Audit) -> tuple[Plan, ...]:
        """Simulate the outermost schedulers; the runner puts them back.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        schedulers = audit.loop.schedulers
        inner = {id(part) for each in schedulers for part in getattr(each, "_schedulers", ())}
        plans = []
        for number, scheduler in enumerate(schedulers):
            if id(scheduler) not in inner:
                audit.clock.check()
                place = audit.loop.locate(scheduler)
                plan = _plan(number, scheduler, audit.loop)
                if place is not None:
                    plan = replace(plan, unused=is_unused(place), metric=followed_metric(place))
                plans.append(plan)
        return tuple(plans)


def _plan(number: int, scheduler: Any, loop: Loop) -> Plan:
    name = type(scheduler).__name__
    settings = {
        key: float(value)
        for key, value in vars(scheduler).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and key[0] != "_"
    }
    optimizer = getattr(scheduler, "optimizer", None)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) or optimizer is None:
        seeks = getattr(scheduler, "mode", "")
        return Plan(number, name, settings, (), unknown="it follows a metric", seeks=seeks)
    rates, ended = [_rate(optimizer)], ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer did not step
        for _ in range(LENGTH):
            try:
                scheduler.step()
            except Exception as error:
                ended = describe(error)
                break
            rates.append(_rate(optimizer))
    if ended.startswith("TypeError") and len(rates) == 1:
        return Plan(number, name, settings, (), unknown="its step takes arguments")
    given = getattr(scheduler, "base_lrs", ())
    base = max((float(rate) for rate in given), default=0.0)
    return Plan(number, name, settings, tuple(rates), ended, base=base)


def followed_metric(place: Location) -> str:
    """Return what the scheduler made at ``place`` is stepped with: one name; else an empty string.

    What is computed on the spot (``1 - accuracy``) is none. Lightning is told what to monitor.
    """
    source = source_of(place.file)
    names = {
        _last_name(target)
        for node in source.at(place.line, ast.Assign)
        for target in node.targets
        if isinstance(target, (ast.Name, ast.Attribute))
    }
    given = {
        _last_name(value)
        for call in source.calls
        if call.name == "step" and call.receiver.rpartition(".")[2] in names
        for value in (*call.node.args[:1], *_keyword(call.node, "metrics"))
    }
    given |= {
        str(value.value)
        for node in source.find(ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "monitor"
        if isinstance(value, ast.Constant)
    }
    return given.pop() if len(given) == 1 else ""


def _keyword(call: ast.Call, name: str) -> list[ast.expr]:
    return [keyword.value for keyword in call.keywords if keyword.arg == name]


_SHOWN = ("get_last_lr", "state_dict", "load_state_dict")


def is_unused(place: Location) -> bool:
    """Whether what is made at ``place`` is assigned to a variable that nothing reads.

    False where other files of the user's are loaded, which may.
    """
    loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    # Modules that torch makes up name a file that does not exist.
    others = any(f and f != place.file and is_user(f) and Path(f).is_file() for f in loaded)
    return not others and never_read(Path(place.file), place.line)


def never_read(file: Path, line: int) -> bool:
    """Whether ``file`` assigns to a variable on ``line`` what it then only shows, saves or loads.

    False for anything but the plain assignment of a call to one name, or to one attribute in a
    class without bases: a base may read it.
    """
    source = source_of(file)
    made = [node for node in source.at(line, ast.Assign) if isinstance(node.value, ast.Call)]
    if len(made) != 1 or len(made[0].targets) != 1:
        return False
    target = made[0].targets[0]
    inherits = any(cls.bases for cls in source.at(line, ast.ClassDef))
    if isinstance(target, ast.Attribute) and inherits:
        return False
    name = _last_name(target)
    uncalled = {id(node.value) for node in source.find(ast.Expr)}  # ``scheduler.step``
    only_shown = {
        id(node.value)
        for node in source.find(ast.Attribute)
        if node.attr in _SHOWN or id(node) in uncalled
    }
    dynamic = {node.value for node in source.find(ast.Constant)}
    names: list[ast.Name | ast.Attribute] = [*source.find(ast.Name), *source.find(ast.Attribute)]
    reads = (node for node in names if isinstance(node.ctx, ast.Load))
    return (
        bool(name)
        and name not in dynamic
        and not any(_last_name(node) == name and id(node) not in only_shown for node in reads)
    )


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _rate(optimizer: torch.optim.Optimizer) -> float:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    bad = [rate for rate in rates if not math.isfinite(rate) or rate < 0.0]
    return bad[0] if bad else max(rates, default=0.0)


def thinned(
    values: Iterable[float], most: int = 200
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return positions and values of at most ``most`` of ``values``, first and last included."""
    everything = list(values)
    every = max(1, math.ceil(len(everything) / most))
    kept = sorted({*range(0, len(everything), every), len(everything) - 1})
    return tuple(float(i) for i in kept), tuple(everything[i] for i in kept)
