"""What a recurrent layer is given for its state when it is called step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.term_gradients import FirstBackward
from nnaudit.state.snapshot import preserved

_BATCHES = 3

_RECURRENT = (nn.RNNCellBase, nn.RNNBase)


@dataclass
class Unrolled:
    """A recurrent layer that is called several times before the gradient is computed.

    Attributes:
        name: its name in the network.
        calls: how often it was called, gradients on.
        cut: calls whose state was what the call before had returned, bit for bit, but without the
            graph.
    """

    name: str
    calls: int = 0
    cut: int = 0
    _last: Tensor | None = field(default=None, repr=False)

    def take(self, given: Tensor | None, returned: Tensor) -> None:
        """Note one call: the state that it was given, and that it returned."""
        last = self._last
        self.calls += 1
        self.cut += (
            given is not None
            and last is not None
            and last.requires_grad
            and not given.requires_grad
            and given.shape == last.shape
            and torch.equal(given, last)
        )
        self._last = returned


class RecurrentStates(Probe[tuple[Unrolled, ...]]):
    """Watches the recurrent layers in one step, up to its first backward pass."""

    steps = 8

    def measure(self, audit: Audit) -> tuple[Unrolled, ...]:
        """Take one step, where there is such a layer; return those that were called."""
        layers: dict[str, nn.Module] = {
            name: module
            for name, module in audit.loop.model.named_modules()
            if isinstance(module, _RECURRENT)
        }
        if not layers:
            return ()
        try:
            return _in_one_step(audit.loop, layers)
        except UserCodeError:
            return ()


@dataclass
class _Seen:
    layers: tuple[Unrolled, ...]
    over: bool = False

    def end(self, root: Tensor) -> None:
        """Take nothing more: the first backward pass begins."""
        self.over = True


class CarriedStates(Probe[str]):
    """Watches whether a recurrent layer begins a batch with the state that the last one left."""

    def measure(self, audit: Audit) -> str:
        """Return the name of such a layer, in all of a few steps; empty for none.

        Raises:
            OutOfBudgetError: the time is used up.
        """
        loop = audit.loop
        layers = {n: m for n, m in loop.model.named_modules() if isinstance(m, nn.RNNBase)}
        if not layers:
            return ""
        seen: list[dict[str, tuple[Tensor | None, Tensor]]] = []
        try:
            for batch in list(consecutive_batches(loop, _BATCHES)):
                audit.clock.check()
                loop.prepare(batch)
                with _states(layers) as states:
                    loop.step(batch)
                seen.append(states)
        except UserCodeError:
            return ""
        return next((name for name in layers if is_carried([each.get(name) for each in seen])), "")


def is_carried(states: list[tuple[Tensor | None, Tensor] | None]) -> bool:
    """Whether each batch begins with the state, not of zeros, that the one before has left.

    Of each batch the state that its first call was given, and the one that its last returned.
    """
    pairs = list(pairwise(states))
    return bool(pairs) and all(
        before is not None
        and after is not None
        and after[0] is not None
        and after[0].shape == before[1].shape
        and torch.equal(after[0], before[1])
        and bool(after[0].count_nonzero())
        for before, after in pairs
    )


@contextmanager
def _states(
    layers: dict[str, nn.RNNBase],
) -> Iterator[dict[str, tuple[Tensor | None, Tensor]]]:
    states: dict[str, tuple[Tensor | None, Tensor]] = {}
    with ExitStack() as stack:
        for name, layer in layers.items():

            def called(
                module: nn.Module, args: Any, kwargs: Any, result: Any, name: str = name
            ) -> None:
                if torch.is_grad_enabled() and (returned := _hidden(result[1])) is not None:
                    begun = states[name][0] if name in states else _given(args, kwargs)
                    states[name] = begun, returned.detach().clone()

            hook = layer.register_forward_hook(called, with_kwargs=True)
            stack.callback(hook.remove)
        yield states


def _given(args: Any, kwargs: Any) -> Tensor | None:
    """Return a copy of the state that a recurrent layer is called with."""
    state = _hidden(args[1] if len(args) > 1 else kwargs.get("hx"))
    return None if state is None else state.detach().clone()


def _in_one_step(loop: Loop, layers: dict[str, nn.Module]) -> tuple[Unrolled, ...]:
    batch = next(iter(consecutive_batches(loop, 1)), None)
    with preserved(loop.subjects):
        loop.prepare(batch)
        with _watched(layers) as seen, FirstBackward(seen.end):
            loop.step(batch)
    return tuple(each for each in seen.layers if each.calls)


@contextmanager
def _watched(layers: dict[str, nn.Module]) -> Iterator[_Seen]:
    seen = _Seen(tuple(Unrolled(name) for name in layers))
    with ExitStack() as stack:
        for layer, one in zip(layers.values(), seen.layers, strict=True):

            def called(
                module: nn.Module, args: Any, kwargs: Any, result: Any, one: Unrolled = one
            ) -> None:
                if not seen.over and torch.is_grad_enabled():
                    state = args[1] if len(args) > 1 else kwargs.get("hx")
                    of_layer = isinstance(module, nn.RNNBase)
                    returned = _hidden(result[1] if of_layer else result)
                    if returned is not None:
                        one.take(_hidden(state), returned)

            hook = layer.register_forward_hook(called, with_kwargs=True)
            stack.callback(hook.remove)
        yield seen


def _hidden(state: Any) -> Tensor | None:
    """Return h of an LSTM's (h, c), and the state itself of the others."""
    first = state[0] if isinstance(state, (tuple, list)) and state else state
    return first if isinstance(first, Tensor) else None
