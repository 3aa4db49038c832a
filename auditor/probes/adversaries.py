"""Whether two networks that train against each other pull the one's verdict in opposite ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.loop.autograd import producer_of
from nnaudit.loop.base import Loop
from nnaudit.loop.trace import parameters_of, patched
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.report import Location
from nnaudit.targets import callstack

STEPS = 4

_ONE_WAY = 0.2
"""Share of the gradient's size by which its sum has a sign: less is a loss that pulls both ways."""

_NUMBERS = 4096
"""So many numbers of the rows are kept."""


@dataclass(frozen=True)
class Round:
    """In one step, which way each loss pulls what one network says of a row: up (1) or down (-1).

    Attributes:
        judge: the number of the optimizer of the network that judges, a discriminator.
        maker: that of the one whose outputs it judges, a generator.
        real: its own loss, on rows that are none of the maker's.
        made: its own loss, on the maker's, detached.
        through: the maker's loss, on the maker's.
        location: the line at which the maker's loss is back-propagated.
        activation: the autograd node that computed the maker's outputs, as they were judged.
        rows: some numbers of the rows that are none of the maker's, flat.
    """

    judge: int
    maker: int
    real: int
    made: int
    through: int
    location: Location | None
    activation: str = ""
    rows: Tensor | None = None


class Adversaries(Probe[tuple[Round, ...]]):
    """Takes a few steps of a program with several optimizers, and notes who pulls which way."""

    steps = STEPS

    def measure(self, audit: Audit) -> tuple[Round, ...]:
        """Return the steps in which one network judged another's outputs and data.

        Raises:
            UserCodeError: a step raised.
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        if len(loop.optimizers) < 2:
            return ()
        some, watch = list(consecutive_batches(loop, STEPS)), _Watch(loop)
        rounds: list[Round] = []
        with watch:
            for batch in some:
                audit.clock.check()
                loop.prepare(batch)
                watch.forget()
                loop.step(batch)
                rounds += watch.rounds()
        return tuple(rounds)


@dataclass
class _Call:
    """One call of a judge: who made its input, whether that is attached, and the ways of pull."""

    judge: int
    maker: int | None
    attached: bool
    producer: str = ""
    rows: Tensor | None = None
    ways: list[tuple[int, Location | None]] = field(default_factory=list)


class _Watch:
    """Listens to the calls of every optimizer's networks for the time of a ``with`` block."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._calls: list[_Call] = []
        self._made: list[tuple[int, Tensor]] = []
        self._line: Location | None = None
        self._within = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(patched(torch.autograd, "backward", self._backward))
            for which, module in owned_modules(self._loop):
                stack.callback(module.register_forward_hook(self._called(which)).remove)
            self._stack = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def forget(self) -> None:
        """Begin a new step."""
        self._calls, self._made = [], []

    def rounds(self) -> Iterator[Round]:
        """Yield what was seen in the step, for each pair of networks."""
        pairs = dict.fromkeys((c.judge, c.maker) for c in self._calls if c.maker is not None)
        for judge, maker in pairs:
            mine = [call for call in self._calls if call.judge == judge]
            real = _way(call for call in mine if call.maker is None and not call.attached)
            made = _way(call for call in mine if call.maker == maker and not call.attached)
            through = _way(call for call in mine if call.maker == maker and call.attached)
            if real and made and through and maker is not None:
                makers = {call.producer for call in mine if call.maker == maker and call.attached}
                rows = [call.rows for call in mine if call.rows is not None]
                yield Round(
                    judge, maker, real[0], made[0], through[0], through[1],
                    makers.pop() if len(makers) == 1 else "", torch.cat(rows) if rows else None,
                )  # fmt: skip

    def _backward(self, real: Callable[..., None]) -> Callable[..., None]:
        @wraps(real)
        def backward(*args: Any, **kwargs: Any) -> None:
            if not self._within:
                self._line = callstack.user_line()
            self._within += 1
            try:
                real(*args, **kwargs)
            finally:
                self._within -= 1

        return backward

    def _called(self, which: int) -> Callable[..., None]:
        def called(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or self._loop.starting:
                return
            given = [each for each in args if isinstance(each, Tensor)]
            if len(given) == 1 and output.requires_grad and _is_verdict(output):
                maker = self._maker_of(given[0], which)
                call = _Call(which, maker, given[0].requires_grad, producer_of(given[0]))
                if maker is None and not call.attached and given[0].is_floating_point():
                    call.rows = _some_of(given[0])
                self._calls.append(call)
                output.register_hook(self._noting(call))  # type: ignore[no-untyped-call]
            self._made.append((which, output))

        return called

    def _maker_of(self, given: Tensor, judge: int) -> int | None:
        where = _memory(given)
        if where is None:
            return None
        makers = (w for w, output in self._made if w != judge and _memory(output) == where)
        return next(makers, None)

    def _noting(self, call: _Call) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            if self._within and (way := way_of(gradient)) is not None:
                call.ways.append((way, self._line))

        return note


def owned_modules(loop: Loop) -> Iterator[tuple[int, nn.Module]]:
    """Yield the outermost modules all of whose parameters one optimizer holds, and no other."""
    ids = [{id(p) for p in parameters_of(optimizer)} for optimizer in loop.optimizers]
    taken: set[int] = set()
    for model in loop.models:
        for module in model.modules():
            own = {id(p) for p in module.parameters()}
            holders = [which for which, held in enumerate(ids) if own & held]
            if id(module) in taken or len(holders) != 1 or not own <= ids[holders[0]]:
                continue
            taken |= {id(inner) for inner in module.modules()}
            if not isinstance(module, torch.jit.ScriptModule):
                yield holders[0], module


def way_of(gradient: Tensor) -> int | None:
    """Return which way a step against ``gradient`` moves the outputs; 0 both ways, None nowhere."""
    values = gradient.detach().float()
    size, total = float(values.abs().sum()), float(values.sum())
    if size == 0.0:
        return None
    return 0 if abs(total) < _ONE_WAY * size else -1 if total > 0 else 1


def _way(calls: Iterator[_Call]) -> tuple[int, Location | None] | None:
    """Return the way that all gradients of ``calls`` go; None where they differ, or none came."""
    ways = [way for call in calls for way in call.ways]
    return ways[0] if ways and len({way for way, _ in ways}) == 1 and ways[0][0] else None


def _some_of(rows: Tensor) -> Tensor:
    """Return up to :data:`_NUMBERS` of the numbers of ``rows``, evenly spread."""
    flat = rows.detach().flatten()
    return flat[:: max(1, len(flat) // _NUMBERS)].float().cpu()


def _is_verdict(output: Tensor) -> bool:
    """Whether it has one number for each row, or for each place of it."""
    return output.is_floating_point() and (
        output.ndim == 1 or (output.ndim > 1 and output.shape[1] == 1)
    )


def _memory(values: Tensor) -> int | None:
    """Return where the numbers lie, as a detached tensor's do; None for what has no such place."""
    if type(values) not in (Tensor, nn.Parameter) or values.layout is not torch.strided:
        return None
    return values.untyped_storage().data_ptr()
