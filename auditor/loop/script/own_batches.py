"""The batches of a script that draws its own, without a loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.errors import UserCodeError
from nnaudit.loop.observer import Observer
from nnaudit.loop.script.channel import Call, StepRequest
from nnaudit.loop.script.steps import Own, ScriptSteps
from nnaudit.loop.total_loss import call_worth
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs

EPOCH = 100
"""Batches after which an epoch of a script without a loader is held to be over."""

LOOKED_AT = 24
"""Likewise where nothing can take their place: to look at one costs two steps."""


class OwnBatches:
    """Lets a script draw its own batches, step after step, the steps undone."""

    def __init__(self, steps: ScriptSteps) -> None:
        """``steps`` are taken to see what the script draws."""
        self._steps = steps
        self._moves = True
        self._full_batch: bool | None = None
        self._whole = Own(None)

    def drawn(self) -> Iterator[Any]:
        """Yield what the script draws by itself, step after step, the steps undone.

        Where two steps use the very same tensors, one batch is the whole epoch.
        """
        if self._moves and not self._full_batch:
            # It is paused between a batch's input and, it may be, its target: with variables that
            # were put back since, they would be those of two batches, which need not fit.
            with suppress(UserCodeError):
                self._draw()
        first: tuple[Call, Any] | None = None
        for count in range(1 if self._full_batch else EPOCH):
            drawn = self._draw()
            if first is None:
                first = drawn
            elif count == 1 and _is_same(first, drawn):
                self._full_batch = True
                return
            yield drawn[1]

    def seeded(self) -> Iterator[Any]:
        """Yield what makes the script draw one of its batches, where others cannot take its place.

        Each is from random numbers of its own, and the same whenever a step is taken on it, as far
        as what the script draws depends on them. Where every step is on the very same tensors, as
        with masks over one graph, there is one batch, and the random numbers go on.
        """
        if self._uses_one_batch():
            yield self._whole
            return
        for _ in range(LOOKED_AT):
            yield self._look(self._next())[1]

    @cached_property
    def repeats(self) -> bool:
        """Whether the script draws a batch again from the same random numbers.

        Not where it goes through an iterator of its own, which cannot be put back.
        """
        if self._uses_one_batch():
            return True
        batch = self._next()
        first, again = (batches.digest(self._look(batch)[1]) for _ in range(2))
        return first == again

    def _next(self) -> Own:
        return Own(int(torch.randint(2**31, ())), self._steps.states())

    def _look(self, batch: Own) -> tuple[Call, Own]:
        """Return the call of the network, and ``batch`` with what is drawn for it.

        The step is undone. Where the script's own generators of random numbers are is not, for it
        draws from them.
        """
        self._steps.prepare(batch)
        with self._steps.undone():
            given, listener = self._steps.given(batch), Observer(nn.Identity(), losses_only=True)
            order = StepRequest(given, watch=True, dry=True, observer=listener)
            self._steps.command(order)
        call, loss = self._steps.entry_of(order), self._steps.loss_of(order)
        # One with the wrong sign compares with it, too.
        main = call_worth(order.loss_calls, loss) or call_worth(order.loss_calls, -loss)
        target = main.arguments.get("target") if main is not None else None
        same = isinstance(target, Tensor) and bool((target == target.reshape(-1)[:1]).all())
        # One number for all rows is not drawn: the program makes it, as adversarial training does.
        fed = ModelInputs(call.args, call.kwargs, None if same else target)
        return call, Own(batch.seed, batch.states, fed)

    def _uses_one_batch(self) -> bool:
        if self._full_batch is None:
            (one, self._whole), (other, _) = (self._look(Own(None)) for _ in range(2))
            self._full_batch = _in_one_place(one, other)
        return self._full_batch

    def _draw(self) -> tuple[Call, Any]:
        """Return what the script draws next, and the call that shows it; the step is undone.

        Where the script is in its data is not: else it would draw the same again.
        """
        counters = self._steps.run.counters
        before = dict(counters.values)
        with self._steps.undone():
            listener = Observer(nn.Identity(), losses_only=True)
            order = self._steps.command(StepRequest(None, watch=True, dry=True, observer=listener))
            drawn = self._steps.entry_of(order), self._redrawn(order)
            moved = {k: v for k, v in counters.values.items() if isinstance(v, (int, float))}
        self._moves = any(before.get(key) != value for key, value in moved.items())
        counters.values.update(moved)
        return drawn

    def _redrawn(self, order: StepRequest) -> Any:
        """Return the batch that the script used in ``order``, in the form of the first."""
        call = self._steps.entry_of(order)
        everything = (call.args, call.kwargs, [c.arguments.get("target") for c in order.loss_calls])
        shape = self._steps.roles.batch
        names = list(shape) if isinstance(shape, dict) else list(range(len(shape)))
        inputs = [value for value in call.args if isinstance(value, Tensor)]
        made: dict[Any, Any] = {}
        for name in names:
            if isinstance(name, str) and name in call.kwargs:
                made[name] = call.kwargs[name]
            elif name == "target" or (isinstance(name, int) and name >= len(inputs)):
                target = next(t for t in everything[2] if isinstance(t, Tensor))
                made[name] = _shaped(target, shape[name], inputs)
            else:
                made[name] = inputs[int(str(name).removeprefix("input"))]
        cpu = {name: value.detach().cpu() for name, value in made.items()}
        return cpu if isinstance(shape, dict) else tuple(cpu.values())


def _shaped(target: Tensor, like: Tensor, inputs: list[Tensor]) -> Tensor:
    """Return ``target`` in the form that the first batch's has, ``like``: of its input, if so."""
    if target.numel() == like.numel():
        return target.reshape(like.shape)
    first = next((each for each in inputs if each.numel() == target.numel()), None)
    return target.reshape(first.shape) if first is not None and like.ndim > target.ndim else target


def _is_same(a: tuple[Call, Any], b: tuple[Call, Any]) -> bool:
    """Whether two calls were given the very same tensors, and the same batch with them.

    The same place in memory: what is drawn or copied anew has another, for ``a`` is still held.
    """
    return _in_one_place(a[0], b[0]) and batches.digest(a[1]) == batches.digest(b[1])


def _in_one_place(one: Call, other: Call) -> bool:
    pairs, again = ([batches.place(each) for each in call.given] for call in (one, other))
    return bool(pairs) and pairs == again
