"""Samples that are drawn without the graph and then given to a network that is trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from nnaudit.context import Audit, Probe
from nnaudit.errors import UserCodeError
from nnaudit.loop.trace import patched
from nnaudit.measure.consecutive import consecutive_batches
from nnaudit.measure.seeding import source_files
from nnaudit.report import Location
from nnaudit.state.snapshot import preserved
from nnaudit.targets import callstack
from nnaudit.targets.source import source_of


@dataclass(frozen=True)
class DrawnSample:
    """A sample of a normal distribution whose mean or scale is trained, drawn by ``sample()``.

    Attributes:
        location: the line that draws it.
        module: the class of the network that is given it.
    """

    location: Location | None
    module: str


class DrawnSamples(Probe[tuple[DrawnSample, ...]]):
    """Takes one step where the source draws samples, and watches those drawn with gradients."""

    steps = 1

    def measure(self, audit: Audit) -> tuple[DrawnSample, ...]:
        """Return the samples that a network gets and of which no likelihood is computed.

        The score function estimator (REINFORCE) draws without the graph and asks for the
        ``log_prob``.
        """
        loop, watch = audit.loop, Draws()
        calls = (call for file in source_files(loop) for call in source_of(file).calls)
        if not any(call.name == "sample" for call in calls):
            return ()
        batch = next(iter(consecutive_batches(loop, 1)), None)
        try:
            with preserved(loop.subjects), watch:
                loop.step(batch)
        except UserCodeError:
            return ()
        return watch.found()


class Draws:
    """Listens to draws from normal distributions for the time of a ``with`` block."""

    def __init__(self) -> None:
        self._drawn: list[tuple[Normal, Tensor, Location | None]] = []
        self._given: dict[int, str] = {}
        self._scored: list[Normal] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(patched(Normal, "sample", self._sample))
            stack.enter_context(patched(Normal, "log_prob", self._log_prob))
            hook = nn.modules.module.register_module_forward_pre_hook(self._called)
            stack.callback(hook.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def found(self) -> tuple[DrawnSample, ...]:
        """Return what was drawn, given to a network with parameters, and never scored."""
        return tuple(
            DrawnSample(where, self._given[id(value)])
            for normal, value, where in self._drawn
            if id(value) in self._given and not any(normal is each for each in self._scored)
        )

    def _sample(self, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(real)
        def sample(normal: Normal, *args: Any, **kwargs: Any) -> Tensor:
            value = real(normal, *args, **kwargs)
            if torch.is_grad_enabled() and (normal.loc.requires_grad or normal.scale.requires_grad):
                self._drawn.append((normal, value, callstack.user_line()))
            return value

        return sample

    def _log_prob(self, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(real)
        def log_prob(normal: Normal, *args: Any, **kwargs: Any) -> Tensor:
            self._scored.append(normal)
            return real(normal, *args, **kwargs)

        return log_prob

    def _called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled() or not any(p.requires_grad for p in module.parameters()):
            return
        for _, value, _ in self._drawn:
            if any(each is value for each in args):
                self._given.setdefault(id(value), type(module).__name__)
